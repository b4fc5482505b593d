"""Orders: send them to the fence, and list them."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from api.auth.access import CurrentCaller, GuardedRoute
from api.metrics import ORDERS
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.orders import OrderBatch, OrderRecord, OrderVerdicts, Refusal

router = APIRouter(prefix="/orders", tags=["orders"], route_class=GuardedRoute)


@router.post("", summary="Send orders to the fence; each gets a verdict")
async def publish(batch: OrderBatch, state: State, caller: CurrentCaller) -> OrderVerdicts:
    """Idempotent by order id. A refused order is stored with its reason; the request itself succeeds."""
    for world_id in {order.world_id for order in batch.orders}:
        caller.require_role(world_id, Role.AUTHOR)
    verdicts = await asyncio.wrap_future(state.stores.orders.submit(batch.orders))
    for order, verdict in zip(batch.orders, verdicts, strict=True):
        ORDERS.labels(order.world_id, verdict.reason.value if verdict.reason else "accepted").inc()
    return OrderVerdicts(verdicts=tuple(verdicts))


@router.get("", summary="List the orders of a world with verdicts and fills, oldest first")
async def list_orders(
    world_id: str,
    state: State,
    caller: CurrentCaller,
    after: Annotated[int, Query(ge=0, lt=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    reason: Refusal | None = None,
) -> list[OrderRecord]:
    caller.require_role(world_id, Role.READER)
    await asyncio.to_thread(state.stores.worlds.world, world_id)
    return await asyncio.to_thread(
        state.stores.order_log.orders, world_id, after, limit, reason.value if reason else ""
    )
