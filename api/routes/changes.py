"""Changes of a world's rules that wait for approvals."""

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.routes.applies import Reason
from api.state import GatewayState, State
from qmtl_sdk.contracts.changes import ChangeStatus

router = APIRouter(prefix="/worlds/{world_id}/changes", tags=["changes"], route_class=GuardedRoute)


@router.get("", summary="List changes of the rules that waited for approvals, newest first")
def list_changes(world_id: str, state: State) -> list[ChangeStatus]:
    return state.stores.rule_changes.all(world_id)


@router.post("/{change_id}/approve", summary="Approve a change; the last approval makes it")
def approve(
    world_id: str, change_id: str, state: State, caller: CurrentCaller, body: Reason | None = None
) -> ChangeStatus:
    """Nobody approves their own change. What leads to live needs an operator and the live header."""
    caller.require_approver(world_id, _roles(world_id, state))
    if state.stores.rule_changes.find(world_id, change_id).leads_to_live:
        caller.require_live(world_id)
    reason = (body or Reason()).reason
    return state.stores.rule_changes.decide(
        world_id, change_id, caller.subject, "approve", reason, caller.token_id
    )


@router.post("/{change_id}/reject", summary="Reject a change")
def reject(
    world_id: str, change_id: str, state: State, caller: CurrentCaller, body: Reason | None = None
) -> ChangeStatus:
    caller.require_approver(world_id, _roles(world_id, state))
    return state.stores.rule_changes.decide(
        world_id, change_id, caller.subject, "reject", (body or Reason()).reason
    )


def _roles(world_id: str, state: GatewayState) -> tuple[str, ...]:
    """Return the roles that the policy in force lets approve."""
    return state.stores.policies.policy(world_id).gating_policy.approvals.roles
