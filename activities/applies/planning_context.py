"""Read the world as the planner does.

One consistent view of spec, policy, decision, activations and evidence.
"""

from collections.abc import Collection
from datetime import UTC, datetime

from sqlmodel import Session

from activities.applies.context import PlanningContext
from activities.decisions.evidence import newest_evidence
from activities.decisions.sql import newest_decision
from activities.fence.activations import activations_of
from activities.sessions.time_open import TimeOpen, time_open
from activities.storage.tables import FenceRow, PolicyRow, WorldRow
from activities.worlds.specs import world_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy


def planning_context(
    session: Session, world_id: str, strategies: Collection[str] | None = None
) -> PlanningContext:
    """Read everything that a plan is made from; of evidence and sessions only `strategies`', if given.

    Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING.
    """
    row = session.get(WorldRow, world_id)
    if row is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    policy = session.get(PolicyRow, (world_id, row.policy_version)) if row.policy_version else None
    if policy is None:
        raise QmtlError(
            "E_POLICY_MISSING",
            f"world {world_id} has no policy",
            f"add one: qmtl world policy add {world_id} FILE",
        )
    fence = session.get_one(FenceRow, world_id)
    now, world = datetime.now(UTC), world_of(row)
    evidence = newest_evidence(session, world_id, world.now(now), strategies)
    rules = Policy.model_validate_json(policy.body)
    activations = activations_of(session, world_id)
    return PlanningContext(
        world=world,
        policy=rules,
        decision=newest_decision(session, world_id),
        activations=tuple(activations),
        evidence={candidate.strategy_id: candidate for candidate in evidence},
        live_edge=fence.live_edge,
        edge_closings=fence.edge_closings,
        now=now,
        ran=_ran_in_dryrun(
            session,
            rules,
            [item for item in activations if strategies is None or item.strategy_id in strategies],
            now,
        ),
    )


def _ran_in_dryrun(
    session: Session, policy: Policy, activations: list[ActivationEnvelope], now: datetime
) -> dict[str, TimeOpen]:
    """Return for how long the strategies in dryrun have run there, where the policy has such a campaign."""
    if policy.gating_policy.campaign.dryrun is None:
        return {}
    since = {
        item.strategy_id: item.stage_since
        for item in activations
        if item.active and item.execution_domain is Domain.DRYRUN and item.stage_since
    }
    if not since:
        return {}
    return time_open(session, activations[0].world_id, Domain.DRYRUN.value, since, now)
