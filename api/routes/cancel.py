"""Cancel open orders of a world."""

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.orders import CancelRequest, CancelResult

router = APIRouter(tags=["orders"], route_class=GuardedRoute)


@router.post("/worlds/{world_id}/orders/cancel", summary="Cancel open orders of a world")
def cancel_orders(world_id: str, body: CancelRequest, state: State, caller: CurrentCaller) -> CancelResult:
    """Orders that were not sent are cancelled at once; the venues of the others are asked. Idempotent."""
    return state.stores.order_log.cancel(world_id, body, caller.subject)
