"""Orders: send them to the fence, and list them."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query

from activities.fence.callers import OrderCaller
from api.auth.access import CurrentCaller, GuardedRoute
from api.metrics import ORDERS
from api.routes.session_secret import SessionSecret
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.orders import (
    OrderBatch,
    OrderRecord,
    OrderVerdicts,
    Refusal,
    WithheldBatch,
    WithheldRecorded,
)

router = APIRouter(prefix="/orders", tags=["orders"], route_class=GuardedRoute)


@router.post("", summary="Send orders to the fence; each gets a verdict")
async def publish(
    batch: OrderBatch, state: State, caller: CurrentCaller, secret: SessionSecret = ""
) -> OrderVerdicts:
    """Idempotent by order id. A refused order is stored with its reason; the request itself succeeds.

    All orders are of one session, whose secret the header carries. Without it, or from another actor than who
    opened the session, each is refused as `no_session` and not stored.
    """
    first = batch.orders[0]
    caller.require_role(first.world_id, Role.AUTHOR)
    return await send_orders(
        state, batch, OrderCaller(caller.subject, {first.session_id: secret}, caller.token_id)
    )


async def send_orders(state: GatewayState, batch: OrderBatch, sender: OrderCaller) -> OrderVerdicts:
    """Send orders to the fence in worlds where the sender has the role for it.

    Raises QmtlError: E_TOKEN_REVOKED, E_WORLD_UNKNOWN.
    """
    verdicts = await state.acceptance.publish(batch.orders, sender)
    for order, verdict in zip(batch.orders, verdicts, strict=True):
        ORDERS.labels(order.world_id, verdict.reason.value if verdict.reason else "accepted").inc()
    return OrderVerdicts(verdicts=tuple(verdicts))


@router.post("/withheld", summary="Record orders that a strategy held back, with the reason")
async def withhold(
    batch: WithheldBatch, state: State, caller: CurrentCaller, secret: SessionSecret = ""
) -> WithheldRecorded:
    """Idempotent by order id: an order that was sent keeps its verdict. The session may have ended."""
    first = batch.orders[0].order
    caller.require_role(first.world_id, Role.AUTHOR)
    sender = OrderCaller(caller.subject, {first.session_id: secret})
    recorded = await asyncio.to_thread(state.stores.withheld.record, batch.orders, sender)
    ORDERS.labels(first.world_id, Refusal.WITHHELD.value).inc(recorded)
    return WithheldRecorded(recorded=recorded)


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
