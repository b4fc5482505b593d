"""Defects to put into the processes of a chaos run, each of which the checkers must find.

The leaks of `leaks.py` let orders through that should be refused. These refuse orders that should be
accepted, or leave orders lying: the other side of the same promise.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from activities.fence import halts, state
from activities.fence import rules as fence
from activities.fence.acceptance import OrderAcceptance
from activities.fence.callers import OrderCaller
from activities.fence.open_order import OpenOrder
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.rules import BreakerCount
from activities.storage.tables import FenceRow
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import Order, OrderVerdict
from qmtl_sdk.contracts.refusals import Refusal


@dataclass(frozen=True)
class Sabotage:
    """A defect of a kind of process. `finding` is a part of the violation that names it.

    `act` is what an operator must do to bring it out.
    """

    part: str
    put_in: Callable[[], None]
    finding: str
    act: str = "halt"


def halt_some_orders() -> None:
    """Refuse one of sixteen orders as halted, whether the world is or not."""
    halted = fence.CHECKS[Refusal.HALTED]
    fence.CHECKS = {
        **fence.CHECKS,
        Refusal.HALTED: lambda context: halted(context) or context.order.order_id.endswith("7"),
    }


def count_on_in_a_new_minute() -> None:
    """Leave the circuit breaker's counts as they are when a minute begins."""

    def note_minute(self: BreakerCount, now: str) -> None:
        self.fence.minute = now[:16]

    setattr(BreakerCount, "__post_init__", note_minute)  # noqa: B010


def count_on_after_a_resume() -> None:
    """Leave the circuit breaker's counts as they are when a halt is lifted."""

    def lift(row: FenceRow) -> None:
        row.halted = ""

    for module in (state, halts):
        setattr(module, "clear_halt", lift)  # noqa: B010


def answer_one_strategy_never() -> None:
    """Let the requests of the strategy that comes first stand still in the Gateway."""
    submit = OrderAcceptance.submit
    still = set[str]()

    def stand_still(
        self: OrderAcceptance, orders: Sequence[Order], caller: OrderCaller
    ) -> "Future[list[OrderVerdict]]":
        if not still:
            still.add(orders[0].strategy_id)
        return Future() if orders[0].strategy_id in still else submit(self, orders, caller)

    setattr(OrderAcceptance, "submit", stand_still)  # noqa: B010


def route_one_strategy_never() -> None:
    """Let the open orders of the strategy that comes first stand still in the order router."""
    due = SqlOpenOrders.due
    still = set[str]()

    def stand_still(
        self: SqlOpenOrders, domain: Domain, limit: int, without: Sequence[str] = ()
    ) -> dict[str, list[OpenOrder]]:
        found = due(self, domain, limit, without)
        for orders in found.values():
            if not still:
                still.add(orders[0].strategy_id)
        return {world: [o for o in orders if o.strategy_id not in still] for world, orders in found.items()}

    setattr(SqlOpenOrders, "due", stand_still)  # noqa: B010


SABOTAGES = {
    "halts spuriously": Sabotage("gateway", halt_some_orders, "was refused for halted, and there was"),
    "counts on in a new minute": Sabotage(
        "gateway",
        count_on_in_a_new_minute,
        "was refused for circuit_breaker, and there was",
        "count_over_a_minute",
    ),
    "counts on after a resume": Sabotage(
        "gateway",
        count_on_after_a_resume,
        "was refused for circuit_breaker, and there was",
        "break_circuit_twice",
    ),
    "answers one strategy never": Sabotage(
        "gateway", answer_one_strategy_never, "was not answered", "let_requests_wait"
    ),
    "routes one strategy never": Sabotage(
        "router", route_one_strategy_never, "was accepted and has not ended"
    ),
}
"""By name. A process of a chaos run reads the name from `QMTL_TEST_SABOTAGE`."""
