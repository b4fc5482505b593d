"""Orders: send them to the fence, and list them."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Query

from activities.fence.callers import OrderCaller
from api.auth.access import CurrentCaller, GuardedRoute
from api.metrics import ORDERS
from api.routes.session_secret import SessionSecret
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderChanges, OrdersOfWorld
from qmtl_sdk.contracts.orders import (
    OrderBatch,
    OrderRecord,
    OrderRequest,
    OrderVerdict,
    OrderVerdicts,
    WithheldBatch,
    WithheldRecorded,
)
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import TargetBatch, TargetVerdict, TargetVerdicts

router = APIRouter(tags=["orders"], route_class=GuardedRoute)


@router.post("/orders", summary="Send orders to the fence; each gets a verdict")
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


@router.post("/targets", summary="Say what a strategy wants to hold; the service orders what is missing")
async def set_targets(
    batch: TargetBatch, state: State, caller: CurrentCaller, secret: SessionSecret = ""
) -> TargetVerdicts:
    """An order is the target in units, less the position in the ledger and what open orders may still fill.

    Safe to repeat: what is there already is not ordered again. Session and secret are as for orders.
    """
    first = batch.targets[0]
    caller.require_role(first.world_id, Role.AUTHOR)
    sender = OrderCaller(caller.subject, {first.session_id: secret}, caller.token_id)
    verdicts = await _send(state, batch.targets, sender)
    return TargetVerdicts(verdicts=tuple(item for item in verdicts if isinstance(item, TargetVerdict)))


async def send_orders(state: GatewayState, batch: OrderBatch, sender: OrderCaller) -> OrderVerdicts:
    """Send orders to the fence in worlds where the sender has the role for it.

    Raises QmtlError: E_TOKEN_REVOKED, E_WORLD_UNKNOWN.
    """
    return OrderVerdicts(verdicts=tuple(await _send(state, batch.orders, sender)))


async def _send(
    state: GatewayState, requests: Sequence[OrderRequest], sender: OrderCaller
) -> list[OrderVerdict]:
    verdicts = await state.acceptance.publish(requests, sender)
    for request, verdict in zip(requests, verdicts, strict=True):
        if verdict.reason or not isinstance(verdict, TargetVerdict) or verdict.ordered:
            ORDERS.labels(request.world_id, verdict.reason.value if verdict.reason else "accepted").inc()
    return verdicts


@router.post("/orders/withheld", summary="Record orders that a strategy held back, with the reason")
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


@router.get("/orders", summary="List the orders of a world with verdicts and fills, oldest first")
async def list_orders(
    state: State, caller: CurrentCaller, wanted: Annotated[OrdersOfWorld, Query()]
) -> list[OrderRecord]:
    """The first ones after a number of the order log, or with `newest` the last ones."""
    caller.require_role(wanted.world_id, Role.READER)
    await asyncio.to_thread(state.stores.worlds.world, wanted.world_id)
    return await asyncio.to_thread(state.stores.order_log.orders, wanted.world_id, wanted)


@router.get("/orders/changes", summary="List orders that are new or have changed after a number of the log")
async def list_changes(
    state: State, caller: CurrentCaller, wanted: Annotated[ChangesOfWorld, Query()]
) -> OrderChanges:
    """A reader goes on with the `after` of the answer. Without `after`, it is the newest number."""
    caller.require_role(wanted.world_id, Role.READER)
    await asyncio.to_thread(state.stores.worlds.world, wanted.world_id)
    return await asyncio.to_thread(state.stores.order_log.changes, wanted)
