"""Allocations of worlds, and plans of rebalancings."""

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.allocations import AllocationSnapshot, AllocationUpdate
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest

router = APIRouter(tags=["allocations"], route_class=GuardedRoute)


@router.get("/allocations", summary="Read which share of the capital each world has")
def allocations(state: State, caller: CurrentCaller) -> AllocationSnapshot:
    """Of the worlds that the caller may read. The etag is that of the allocations of all worlds."""
    found = state.stores.allocations.snapshot()
    seen = tuple(item for item in found.allocations if caller.role_in(item.world_id))
    return found.model_copy(update={"allocations": seen})


@router.post("/allocations", summary="Set which share of the capital worlds have")
def set_allocations(change: AllocationUpdate, state: State, caller: CurrentCaller) -> AllocationSnapshot:
    """No order follows: a rebalancing plan says what would be ordered. Other worlds keep their shares."""
    for item in change.allocations:
        caller.require_role(item.world_id, Role.OPERATOR)
    return state.stores.allocations.update(change, caller.subject)


@router.post("/rebalancing/plan", summary="Plan the orders that follow from other shares of the capital")
def plan(request: MultiWorldRebalanceRequest, state: State, caller: CurrentCaller) -> RebalancePlan:
    """Nothing is changed, and the orders depend on the request alone.

    It is refused where its `allocations_etag` is not the present one. Alpha metrics are those of the newest
    evidence.
    """
    for item in request.worlds:
        caller.require_role(item.world_id, Role.READER)
    if state.config.rebalancing.alpha_metrics_required:
        request.require_alpha_metrics()
    return state.stores.allocations.plan(request)
