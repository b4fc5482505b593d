"""Read the world as the planner does.

One consistent view of spec, policy, decision, activations and evidence.
"""

from collections.abc import Collection
from datetime import UTC, datetime

import sqlalchemy
from sqlalchemy import bindparam, func
from sqlmodel import Session, col, select

from activities.applies.context import PlanningContext
from activities.decisions.evidence import newest_evidence
from activities.decisions.sql import newest_decision
from activities.fence.activations import activations_of
from activities.sessions.time_open import TimeOpen, time_open
from activities.storage.tables import DecisionRow, FenceRow, PolicyRow, WorldRow
from activities.worlds.specs import world_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy

_WORLD = (
    select(WorldRow, FenceRow, PolicyRow)
    .join(FenceRow, col(FenceRow.world_id) == WorldRow.world_id)
    .join(
        PolicyRow,
        (col(PolicyRow.world_id) == WorldRow.world_id) & (col(PolicyRow.version) == WorldRow.policy_version),
        isouter=True,
    )
    .where(WorldRow.world_id == bindparam("world"))
)

# Numbers and hashes that change with what a plan is made from. Evidence counts with the next decision, and is
# checked at the freeze.
_STAMP = (
    sqlalchemy.select(
        col(WorldRow.etag),
        col(WorldRow.state),
        col(WorldRow.policy_version),
        col(WorldRow.pinned_fingerprint),
        col(FenceRow.activation_sequence),
        col(FenceRow.allow_live),
        col(FenceRow.live_edge),
        col(FenceRow.edge_closings),
        select(func.max(DecisionRow.seq)).where(DecisionRow.world_id == bindparam("world")).scalar_subquery(),
    )
    .join(FenceRow, col(FenceRow.world_id) == WorldRow.world_id)
    .where(col(WorldRow.world_id) == bindparam("world"))
)


def world_stamp(session: Session, world_id: str) -> tuple[object, ...] | None:
    """Return what differs once a plan of the world would be made from something else. None: no such world."""
    found = session.execute(_STAMP, {"world": world_id}).first()
    return tuple(found) if found else None


def planning_context(
    session: Session, world_id: str, strategies: Collection[str] | None = None
) -> PlanningContext:
    """Read everything that a plan is made from; of evidence and sessions only `strategies`', if given.

    Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING.
    """
    found = session.execute(_WORLD, {"world": world_id}).first()
    if found is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    row, fence, policy = found
    if policy is None:
        raise QmtlError(
            "E_POLICY_MISSING",
            f"world {world_id} has no policy",
            f"add one: qmtl world policy add {world_id} FILE",
        )
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
