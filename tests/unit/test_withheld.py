"""What a running strategy does not send is reported with the reason, within a limit, and never sent later."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON, Order, OrderVerdict, WithheldOrder
from qmtl_sdk.runtime.orders import OrderIntent, OrderPublisher
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.routes.transport import NOT_A_GATEWAY
from tests.support.gates import Gate

LIMIT_S = 10.0


class Gateway:
    """A Gateway that keeps what it was sent, unless it is away or refuses."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, Order]] = []
        self.reports: list[tuple[str, WithheldOrder]] = []
        self.requests = 0
        self.away = False
        self.refuses_together = 1_000_000
        self.limited = False
        self.refuses: Callable[[Order], bool] = lambda _: False
        self.changed = threading.Condition()

    def publish_orders(
        self, orders: list[Order], session: SessionKey, patience_s: float
    ) -> list[OrderVerdict]:
        self._answer(orders)
        with self.changed:
            self.orders += [(session.session_id, order) for order in orders]
            self.changed.notify_all()
        return [OrderVerdict(order_id=order.order_id, accepted=True, epoch=1) for order in orders]

    def report_withheld(self, orders: list[WithheldOrder], session: SessionKey) -> int:
        self._answer([item.order for item in orders])
        with self.changed:
            self.reports += [(session.session_id, item) for item in orders]
            self.changed.notify_all()
        return len(orders)

    def _answer(self, orders: list[Order]) -> None:
        with self.changed:
            self.requests += 1
            self.changed.notify_all()
            if self.away or len(orders) >= self.refuses_together:
                raise QmtlError("E_UNAVAILABLE", "away", **({} if self.away else {NOT_A_GATEWAY: True}))
            if self.limited:
                raise QmtlError("E_RATE", "too many requests")
            if any(map(self.refuses, orders)):
                raise QmtlError("E_BODY_INVALID", "no database holds it")

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT_S)


class Trading:
    """A publisher with its gate and its Gateway; `session` is the present one."""

    def __init__(self, domain: Domain | None = Domain.DRYRUN) -> None:
        self.gateway = Gateway()
        self.gate = Gate(domain)
        self.session = "first"
        self.publisher = OrderPublisher(
            self.gateway,  # type: ignore[arg-type]
            self.gate,
            "w",
            "strategy:a",
            lambda: SessionKey(self.session, f"secret of {self.session}"),
        )
        self._bar = 0

    def intent(self, quantity: float = 1.0, symbol: str = "AAPL") -> OrderIntent:
        self._bar += 1
        return OrderIntent("n", self._bar, datetime.now(UTC), symbol, quantity, 1.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.publisher.start()
        try:
            yield
        finally:
            self.publisher.close()


def test_an_order_at_a_closed_gate_is_reported_with_the_reason_and_never_sent() -> None:
    trading = Trading()
    with trading.running():
        trading.gate.why = "the world is frozen"
        assert not trading.publisher.enqueue(trading.intent(-2.0))
        trading.gateway.wait(lambda: len(trading.gateway.reports) == 1)
        trading.gate.why = ""
        assert trading.publisher.enqueue(trading.intent())
        trading.gateway.wait(lambda: len(trading.gateway.orders) == 1)
    ((session, held),) = trading.gateway.reports
    assert (session, held.reason, held.order.side, held.order.session_id) == (
        "first",
        "the world is frozen",
        "sell",
        "first",
    )
    assert held.order.order_id != trading.gateway.orders[0][1].order_id


def test_reports_wait_for_a_gateway_within_a_limit_and_the_oldest_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qmtl_sdk.runtime.withheld.WITHHELD_LIMIT", 3)
    trading = Trading()
    trading.gateway.away, trading.gate.why = True, "frozen"
    held = [trading.intent() for _ in range(5)]
    for intent in held[:4]:
        trading.publisher.enqueue(intent)
    with trading.running():
        trading.gateway.wait(lambda: trading.gateway.requests >= 2)
        trading.publisher.enqueue(held[4])
        trading.gateway.away = False
        trading.gateway.wait(lambda: len(trading.gateway.reports) == 3)
    assert [item.order.decided_at for _, item in trading.gateway.reports] == [
        intent.close for intent in held[2:]
    ]
    assert (trading.publisher.withheld.recorded, trading.publisher.withheld.dropped) == (3, 2)


def test_orders_go_out_while_reports_are_refused() -> None:
    trading = Trading()
    trading.gate.why = "frozen"
    trading.publisher.enqueue(trading.intent(symbol="BAD"))
    trading.gate.why = ""
    trading.gateway.refuses = lambda order: order.symbol == "BAD"
    with trading.running():
        trading.publisher.enqueue(trading.intent())
        trading.gateway.wait(lambda: len(trading.gateway.orders) == 1)
        trading.gateway.wait(lambda: trading.publisher.withheld.dropped == 1)


def test_an_order_that_the_gateway_refuses_costs_none_of_the_others() -> None:
    trading = Trading()
    trading.gateway.refuses = lambda order: order.symbol == "BAD"
    for symbol in ("A", "B", "BAD", "C"):
        trading.publisher.enqueue(trading.intent(symbol=symbol))
    with trading.running():
        trading.gateway.wait(lambda: len(trading.gateway.orders) == 3)
    assert [order.symbol for _, order in trading.gateway.orders] == ["A", "B", "C"]
    assert trading.publisher.refused == {"E_BODY_INVALID": 1}


def test_a_request_holds_the_orders_of_one_session() -> None:
    trading = Trading()
    for session in ("first", "second", "second", "first"):
        trading.session = session
        trading.publisher.enqueue(trading.intent())
    with trading.running():
        trading.gateway.wait(lambda: len(trading.gateway.orders) == 4)
    assert [session for session, _ in trading.gateway.orders] == ["first", "second", "second", "first"]
    assert all(order.session_id == session for session, order in trading.gateway.orders)
    assert trading.gateway.requests == 3


def test_what_was_never_sent_is_reported_when_it_is_too_old_and_at_the_end() -> None:
    trading = Trading()
    trading.gateway.away = True
    trading.publisher.enqueue(trading.intent())
    with trading.running():
        trading.gateway.wait(lambda: trading.gateway.requests >= 1)
        trading.gate.manager.ttl_s = -1.0  # type: ignore[misc]
        trading.gateway.wait(lambda: trading.publisher.undelivered == 1)
        trading.gate.manager.ttl_s = 300.0  # type: ignore[misc]
        trading.publisher.enqueue(trading.intent())
        trading.gateway.away = False
        trading.gateway.wait(lambda: len(trading.gateway.reports) == 1)
    trading = Trading()
    trading.publisher.enqueue(trading.intent())
    trading.publisher._report_rest()
    assert [item.reason for _, item in trading.gateway.reports] == [
        "the strategy was stopped before it was sent"
    ]


@pytest.mark.parametrize("domain", [None, Domain.SHADOW, Domain.BACKTEST])
def test_where_there_are_no_orders_nothing_is_reported(domain: Domain | None) -> None:
    trading = Trading(domain)
    trading.gate.why = "shadow: orders are off"
    trading.publisher.enqueue(trading.intent())
    assert len(trading.publisher.withheld) == 0
    assert trading.publisher.blocked == {"shadow: orders are off": 1}


@pytest.mark.parametrize("quantity", [1e-13, 1e300, float("nan")])
def test_what_no_order_can_hold_is_not_reported(quantity: float) -> None:
    trading = Trading()
    trading.gate.why = "frozen"
    trading.publisher.enqueue(trading.intent(quantity))
    assert len(trading.publisher.withheld) == 0


def test_a_reason_of_any_text_can_be_reported() -> None:
    trading = Trading()
    trading.gate.why = "\x00\ud800" + "x" * 1000
    with trading.running():
        trading.publisher.enqueue(trading.intent())
        trading.gateway.wait(lambda: len(trading.gateway.reports) == 1)
    reason: Any = trading.gateway.reports[0][1].reason
    assert (len(reason), reason[2:]) == (MAX_REASON, "x" * (MAX_REASON - 2))


def test_orders_that_a_proxy_refuses_together_are_sent_apart() -> None:
    """An answer that is no Gateway's is repeated; one that was too long would be refused each time."""
    trading = Trading()
    trading.gateway.refuses_together = 3
    orders = [trading.intent() for _ in range(20)]
    for intent in orders:
        assert trading.publisher.enqueue(intent)
    with trading.running():
        trading.gateway.wait(lambda: len(trading.gateway.orders) == len(orders))


def test_withheld_orders_that_a_proxy_refuses_together_are_reported_apart() -> None:
    trading = Trading()
    trading.gateway.refuses_together = 3
    trading.gate.why = "the world is frozen"
    with trading.running():
        for _ in range(20):
            trading.publisher.enqueue(trading.intent())
        trading.gateway.wait(lambda: len(trading.gateway.reports) == 20)


@pytest.mark.parametrize("state", ["limited", "away"])
def test_a_gateway_that_takes_nothing_now_gets_as_many_orders_in_a_request_later(state: str) -> None:
    """More requests for the same orders would be refused more often, until each order was sent alone."""
    trading = Trading()
    setattr(trading.gateway, state, True)
    orders = [trading.intent() for _ in range(20)]
    for intent in orders:
        assert trading.publisher.enqueue(intent)
    with trading.running():
        trading.gateway.wait(lambda: trading.gateway.requests >= 3)
        refused = trading.gateway.requests
        setattr(trading.gateway, state, False)
        trading.gateway.wait(lambda: len(trading.gateway.orders) == len(orders))
        assert trading.gateway.requests <= refused + 2, "all of them in one request"
