"""A running strategy's targets are sent until the fence takes them, and again when the world has changed."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pytest

from qmtl_sdk import Node, QmtlError, StreamInput, TradeOrderPublisherNode
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.orders import OrderRequest, OrderVerdict
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import Target, TargetVerdict
from qmtl_sdk.contracts.worlds import World
from qmtl_sdk.data.bars import NS, Bars, to_ns
from qmtl_sdk.runtime.intents import IntentBuilder
from qmtl_sdk.runtime.orders import OrderPublisher
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.targets import TargetIntent
from tests.support.gates import Gate
from tests.support.machine import wait_for

LIMIT_S = 10.0
DAY = 86_400
BAR = datetime(2024, 1, 2, tzinfo=UTC)
D = Decimal
PRICE = StreamInput(tags=["AAPL", "price"], interval="1d", period=3)
WORLD = World.model_validate({"spec": {"world": "w"}, "created_at": BAR, "etag": "e"})


class Gateway:
    """Answers targets, as the test says; otherwise it orders what it is asked for."""

    def __init__(self) -> None:
        self.sent: list[Target] = []
        self.answer: Callable[[Target], Refusal | None] = lambda _: None
        self.away = False
        self.requests = 0
        self.acks = 0
        self.changed = threading.Condition()

    def publish_targets(
        self, targets: list[Target], session: SessionKey, patience_s: float
    ) -> list[TargetVerdict]:
        with self.changed:
            self.requests += 1
            self.changed.notify_all()
            if self.away:
                raise QmtlError("E_UNAVAILABLE", "away")
            self.sent += targets
            found = [(target, self.answer(target)) for target in targets]
        return [
            TargetVerdict(
                order_id=target.order_id,
                accepted=reason is None,
                reason=reason,
                epoch=1,
                ordered=target.value if reason is None else D(0),
            )
            for target, reason in found
        ]

    def ack_session(self, session: SessionKey, sequence: int) -> bool:
        with self.changed:
            self.acks += 1
            self.changed.notify_all()
        return True

    def wait(self, condition: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, LIMIT_S)


class Trading:
    """A publisher with its gate and its Gateway."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("qmtl_sdk.runtime.targets._RETRY_S", 0.01)
        monkeypatch.setattr("qmtl_sdk.runtime.orders.WAKE_S", 0.01)
        self.gateway = Gateway()
        self.gate = Gate()
        self.session = "first"
        self.verdicts: list[tuple[OrderRequest, OrderVerdict]] = []
        self.publisher = OrderPublisher(
            self.gateway,  # type: ignore[arg-type]
            self.gate,
            "w",
            "strategy:a",
            lambda: SessionKey(self.session, "secret"),
            lambda *both: self.verdicts.append(both),
        )

    def __enter__(self) -> "Trading":
        self.publisher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.publisher.close()

    def wants(self, value: str, symbol: str = "AAPL", tradable: bool = True) -> None:
        self.publisher.set_targets([TargetIntent(symbol, BAR, "weight", D(value), D(100), tradable)])

    def sent(self) -> list[tuple[str, Decimal]]:
        return [(target.symbol, target.value) for target in self.gateway.sent]


@pytest.fixture
def trading(monkeypatch: pytest.MonkeyPatch) -> Trading:
    return Trading(monkeypatch)


def test_a_target_is_sent_once_while_nothing_changes(trading: Trading) -> None:
    with trading:
        trading.wants("0.5")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
        trading.wants("0.25", "MSFT")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 2)
    assert trading.sent() == [("AAPL", D("0.5")), ("MSFT", D("0.25"))]
    assert trading.publisher.accepted == 2


@pytest.mark.parametrize("change", ["epoch", "activation", "session", "bar"])
def test_it_is_sent_again_when_the_world_has_changed(trading: Trading, change: str) -> None:
    with trading:
        trading.wants("0.5")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
        match change:
            case "epoch":
                trading.gate.world.epoch = 2
            case "activation":
                trading.gate.world.activation = SimpleNamespace(etag="b")
            case "session":
                trading.session = "second"
            case "bar":
                trading.wants("0.5")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 2)
    first, second = trading.gateway.sent
    assert first.order_id != second.order_id
    assert second.epoch == trading.gate.world.epoch
    assert second.session_id == trading.session


def test_at_a_closed_gate_only_the_newest_target_waits(trading: Trading) -> None:
    trading.gate.why = "the world is frozen"
    with trading:
        for value in ("0.1", "0.2", "0.3"):
            trading.wants(value)
        for turn in (1, 2):  # a whole turn of the thread lies between its two acknowledgements
            trading.publisher.acknowledge(SessionKey("first"), turn)
            trading.gateway.wait(lambda turn=turn: trading.gateway.acks == turn)  # type: ignore[misc]
        assert not trading.gateway.requests
        trading.gate.why = ""
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("AAPL", D("0.3"))]


def test_a_refused_target_is_sent_again_under_a_new_id_until_it_is_taken(trading: Trading) -> None:
    trading.gateway.answer = lambda _: Refusal.NO_ROUTER if len(trading.gateway.sent) < 4 else None
    with trading:
        trading.wants("0.5")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 4)
        trading.wants("0.5", "MSFT")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 5)
    assert len({target.order_id for target in trading.gateway.sent}) == 5
    assert trading.publisher.refused["no_router"] == 3
    assert [verdict.reason for _, verdict in trading.verdicts] == [Refusal.NO_ROUTER] * 3 + [None] * 2


def test_what_is_refused_is_reported_until_it_is_taken(trading: Trading) -> None:
    answers = {"AAPL": Refusal.NO_CAPITAL, "MSFT": Refusal.NO_CAPITAL, "PG": Refusal.NO_PRICE}
    trading.gateway.answer = lambda target: answers.get(target.symbol)
    targets = trading.publisher.targets
    with trading:
        for symbol in ("AAPL", "MSFT", "KO", "PG"):
            trading.wants("0.5", symbol)
        wait_for(lambda: targets.refused()[0] == 3, "three refusals", LIMIT_S)
        assert targets.refused()[1].startswith("AAPL, MSFT: a target weight needs the world's capital")
        trading.gateway.answer = lambda _: None
        wait_for(lambda: targets.refused() == (0, ""), "no refusal", LIMIT_S)


def test_the_next_bar_of_a_refused_target_waits_as_long(trading: Trading) -> None:
    """Each bar began with short pauses again: a strategy at its limit asked without end."""
    trading.gateway.answer = lambda _: Refusal.NO_CAPITAL
    with trading:
        trading.wants("0.5")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 3)
        refusals = trading.publisher.targets._waiting["AAPL"].refusals
        trading.wants("0.5")
        assert trading.publisher.targets._waiting["AAPL"].refusals >= refusals >= 2
        trading.wants("0.6")
        assert trading.publisher.targets._waiting["AAPL"].refusals <= 1


def test_a_target_waits_for_a_gateway(trading: Trading) -> None:
    trading.gateway.away = True
    with trading:
        trading.wants("0.5")
        trading.gateway.wait(lambda: trading.gateway.requests >= 2)
        trading.wants("0.7")
        trading.gateway.away = False
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("AAPL", D("0.7"))]


def test_a_target_that_may_not_be_traded_is_not_sent(trading: Trading) -> None:
    with trading:
        trading.wants("0.5", tradable=False)
        trading.wants("0.5", "MSFT")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("MSFT", D("0.5"))]


def test_a_target_that_no_request_can_hold_is_counted_and_stops_no_other(trading: Trading) -> None:
    with trading:
        trading.wants("7")  # beyond 1
        trading.wants("0.5", "MSFT")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("MSFT", D("0.5"))]
    assert any("between -1 and 1" in reason for reason in trading.publisher.targets.blocked)


def output(rows: int = 3, **columns: list[float]) -> NodeOutput:
    ts = to_ns(BAR) + np.arange(rows) * DAY * NS
    return NodeOutput(Bars(ts, {name: np.array(values) for name, values in columns.items()}, DAY))


def test_a_strategy_that_starts_in_the_middle_sends_the_targets_that_it_decided_last(
    trading: Trading,
) -> None:
    publisher = TradeOrderPublisherNode(Node(PRICE, lambda view: view, name="target"))
    builder = IntentBuilder([PRICE, publisher], WORLD)
    outputs = {
        PRICE.node_id: output(close=[9.0, 10.0, 11.0]),
        publisher.node_id: output(target_weight=[0.1, 0.5, float("nan")]),
    }
    with trading:
        builder.restore(trading.publisher, outputs)
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    (target,) = trading.gateway.sent
    assert (target.unit, target.value, target.reference_price) == ("weight", D("0.5"), D(11))
    assert target.decided_at == datetime(2024, 1, 4, tzinfo=UTC)  # the close of the second bar


def test_a_strategy_of_orders_sends_none_of_its_past(trading: Trading) -> None:
    publisher = TradeOrderPublisherNode(Node(PRICE, lambda view: view, name="orders"))
    builder = IntentBuilder([PRICE, publisher], WORLD)
    with trading:
        builder.restore(trading.publisher, {publisher.node_id: output(quantity=[1.0, 2.0, 3.0])})
        trading.wants("0.5", "MSFT")
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("MSFT", D("0.5"))]


def test_two_publishers_cannot_set_targets_of_one_symbol(trading: Trading) -> None:
    nodes = [TradeOrderPublisherNode(PRICE, symbol="AAPL", name=name) for name in ("one", "two")]
    two = TradeOrderPublisherNode(Node(PRICE, lambda view: view, name="n"), symbol="AAPL")
    builder = IntentBuilder([nodes[0], two], WORLD)
    with trading:
        builder.publish(trading.publisher, nodes[0], to_ns(BAR), {"target_weight": 0.5}, BAR)
        with pytest.raises(QmtlError, match="two publishers"):
            builder.publish(trading.publisher, two, to_ns(BAR), {"target_weight": -0.5}, BAR)
        trading.gateway.wait(lambda: len(trading.gateway.sent) == 1)
    assert trading.sent() == [("AAPL", D("0.5"))]
