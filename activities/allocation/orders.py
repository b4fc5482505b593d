"""The orders of a plan: one scope, positive quantities, and ids by which a retry is recognised."""

from collections.abc import Iterable
from decimal import Decimal

from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import order_id_prefix
from qmtl_sdk.contracts.rebalance_plan import Delta, RebalanceOrder, RebalanceOrders, RebalancePlan
from qmtl_sdk.contracts.rebalance_runs import ALL_WORLDS
from qmtl_sdk.contracts.rebalancing import RebalanceScope

REBALANCING = "rebalancing"
"""The strategy for which orders are placed that several strategies share."""


def orders_from_plan(plan: RebalancePlan, run_id: str) -> RebalanceOrders:
    """Return the orders of a plan, in the order of execution, all of the plan's scope."""
    return _orders(plan.deltas, plan.scope, run_id)


def orders_from_world_plan(plan: RebalancePlan, world_id: str, run_id: str) -> RebalanceOrders:
    """Return the orders of one world of a plan, in the order of execution.

    Raises QmtlError: E_ORDER_SCOPE where the plan nets all worlds; E_ALLOCATION_MISSING for another world.
    """
    if plan.scope == "global":
        raise QmtlError(
            "E_ORDER_SCOPE",
            "the plan nets all worlds in one account: orders of a world would trade the same once more",
            "take the orders of the whole plan, or plan with the scope world",
            scope=plan.scope,
            world_id=world_id,
        )
    if world_id not in plan.per_world:
        raise QmtlError(
            "E_ALLOCATION_MISSING",
            f"the plan has no world {world_id}",
            "name one of its worlds",
            world_id=world_id,
        )
    return _orders(plan.per_world[world_id].deltas, plan.scope, run_id)


def client_order_id(run_id: str, delta: Delta) -> str:
    """Return the id of a delta's order, from run, world, strategy, venue, symbol and side.

    A plan has one order with it: an overlay is sold and bought back, and nothing else trades its instrument.
    """
    place = (delta.world_id, delta.strategy_id, delta.venue, delta.symbol)
    return part_order_id(run_id, place, delta.quantity)


def part_order_id(run_id: str, place: tuple[str, str, str, str], quantity: Decimal) -> str:
    """Return the id of an order at a place: world, strategy, venue and symbol. `quantity` is signed."""
    side = "buy" if quantity > 0 else "sell"
    digest = hash_parts(run_id, *place, side).removeprefix("blake3:")
    return order_id_prefix(place[0] or ALL_WORLDS, place[1] or REBALANCING) + digest[:32]


def _orders(deltas: Iterable[Delta], scope: RebalanceScope, run_id: str) -> RebalanceOrders:
    return RebalanceOrders(orders=tuple(_order(delta, scope, run_id) for delta in deltas))


def _order(delta: Delta, scope: RebalanceScope, run_id: str) -> RebalanceOrder:
    return RebalanceOrder(
        client_order_id=client_order_id(run_id, delta),
        scope=scope,
        phase=delta.phase,
        world_id=delta.world_id,
        strategy_id=delta.strategy_id,
        venue=delta.venue,
        symbol=delta.symbol,
        side="buy" if delta.quantity > 0 else "sell",
        quantity=delta.quantity.copy_abs(),
        reference_price=delta.reference_price,
        time_in_force=delta.time_in_force,
        reduce_only=delta.reduce_only,
        parts=delta.parts,
    )
