"""Defects of rebalancings and of what carries out their orders, each of which the checker must find."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from activities.applies import transitions
from activities.brokers.broker import AcceptedOrder
from activities.fence import reports
from activities.fence.fills import NewFills, new_fills, write_lines
from activities.fence.log_line import LogLine
from activities.rebalancing import beginning
from activities.storage.transactions import Transaction
from tests.chaos.exchange import HttpBroker
from tests.support.sabotage import Sabotage


def lose_a_fill() -> None:
    """Book the end of an order without its last fills."""

    def write(tx: Transaction, world_id: str, lines: Sequence[LogLine]) -> None:
        write_lines(tx, world_id, [_without_fills(line) for line in lines])

    setattr(reports, "write_lines", write)  # noqa: B010


def _without_fills(line: LogLine) -> LogLine:
    return line._replace(body="") if line.kind == "filled" else line


def book_fills_twice() -> None:
    """Take a fill of half an order for two."""

    def twice(*arguments: Any) -> NewFills:
        found = new_fills(*arguments)
        fresh = {
            order_id: tuple(
                item
                for fill in fills
                for item in (fill, fill.model_copy(update={"fill_id": f"{fill.fill_id}-again"}))
            )
            for order_id, fills in found.fresh.items()
        }
        return NewFills(fresh, found.reused)

    setattr(reports, "new_fills", twice)  # noqa: B010


def _method_of(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a method that calls `call` with its own name first."""

    def method(*arguments: Any) -> Any:
        return call(name, *arguments)

    return method


def place_again_under_another_id() -> None:
    """Place an order whose call was cut under a new client id, and know it by that from then on."""
    names = dict[str, str]()
    calls = {name: getattr(HttpBroker, name) for name in ("place", "find", "cancel")}

    def named(orders: Sequence[AcceptedOrder]) -> list[AcceptedOrder]:
        return [
            item._replace(order=item.order.model_copy(update={"order_id": names[item.order.order_id]}))
            for item in orders
        ]

    def call(name: str, self: HttpBroker, orders: Sequence[AcceptedOrder], now: datetime) -> Any:
        for item in orders:
            own = item.order.order_id
            is_known = own in names
            names.setdefault(own, own)
            if name == "place" and is_known:
                names[own] = f"{own}-{uuid.uuid4().hex[:4]}"
        found = calls[name](self, named(orders), now)
        back = {names[item.order.order_id]: item.order.order_id for item in orders}
        return found and [item.model_copy(update={"order_id": back[item.order_id]}) for item in found]

    for name in calls:
        setattr(HttpBroker, name, _method_of(call, name))


def skip_the_lock() -> None:
    """Let applies and rebalancings hold a world at the same time."""

    def nothing(*_: object, **__: object) -> None:
        return

    transitions.require_unlocked = nothing
    beginning.require_unlocked = nothing
    beginning.lock_for_rebalancing = nothing


REBALANCING_SABOTAGES = {
    "skips the lock": Sabotage("worker", skip_the_lock, "an apply froze"),
    "retries without its client id": Sabotage(
        "router", place_again_under_another_id, "is at the exchange, and was never marked as sent"
    ),
    "books fills twice": Sabotage("router", book_fills_twice, "is doubled"),
    "loses a fill": Sabotage("router", lose_a_fill, "is lost"),
}
"""By name, as `SABOTAGES`."""
