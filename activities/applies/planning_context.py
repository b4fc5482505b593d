"""Read the world as the planner does.

One consistent view of spec, policy, decision, activations and evidence.
"""

from datetime import UTC, datetime

from sqlmodel import Session

from activities.applies.context import PlanningContext
from activities.decisions.evidence import newest_evidence
from activities.decisions.sql import newest_decision
from activities.fence.activations import activations_of
from activities.fence.state import fence_status
from activities.storage.tables import PolicyRow, WorldRow
from activities.worlds.specs import world_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy


def planning_context(session: Session, world_id: str) -> PlanningContext:
    """Read everything that a plan is made from. Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING."""
    row = session.get(WorldRow, world_id)
    if row is None:
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}", "qmtl world list prints them")
    policy = session.get(PolicyRow, (world_id, row.policy_version)) if row.policy_version else None
    if policy is None:
        raise QmtlError(
            "E_POLICY_MISSING", f"world {world_id} has no policy", "add one: qmtl world policy add W FILE"
        )
    return PlanningContext(
        world=world_of(row),
        policy=Policy.model_validate_json(policy.body),
        decision=newest_decision(session, world_id),
        activations=tuple(activations_of(session, world_id)),
        evidence={candidate.strategy_id: candidate for candidate in newest_evidence(session, world_id)},
        live_edge=fence_status(session, world_id).live_edge,
        now=datetime.now(UTC),
    )
