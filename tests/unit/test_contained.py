"""Nothing that an author's values or callbacks do ends a thread of a running strategy silently."""

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from qmtl_sdk import Node, Runner, Strategy, TagQueryNode
from qmtl_sdk.compute.live import OutputRow
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.domains import ComputeContext, Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, OrderVerdict, WithheldOrder
from qmtl_sdk.contracts.sessions import SessionGrant, SessionHeartbeat, SessionLease
from qmtl_sdk.contracts.stream import EventFrame, Snapshot
from qmtl_sdk.contracts.topic_state import TopicState
from qmtl_sdk.contracts.worlds import World, WorldSpec
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.activation import OrderGate
from qmtl_sdk.runtime.orders import OrderIntent, OrderPublisher
from qmtl_sdk.runtime.routes.running import SessionKey
from qmtl_sdk.runtime.rows import CacheHitReports, RowProcessor, RunInputs
from qmtl_sdk.runtime.running import RunningStrategy
from qmtl_sdk.runtime.submission import Submission
from qmtl_sdk.runtime.topic_reader import TopicReader
from tests.support.events import event

LIMIT_S = 10.0
KEY = SessionKey("s" * 32, "x")


class OpenGate(OrderGate):
    """A gate that only its faults close."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace(epoch=1, ttl_s=300.0), domain=Domain.DRYRUN)  # type: ignore[arg-type]

    @property
    def reason(self) -> str:
        return next(iter(self.faults.values()), "")


class Gateway:
    """A Gateway that accepts every order and keeps what it was sent."""

    def __init__(self) -> None:
        self.orders: list[Order] = []
        self.acks: list[tuple[SessionKey, int]] = []
        self.heartbeats: list[SessionHeartbeat] = []
        self.answered = threading.Condition()
        self.withheld: list[WithheldOrder] = []
        self.away = False
        self.tried = 0
        self.failing = 0

    def publish_orders(
        self, orders: list[Order], session: SessionKey, patience_s: float
    ) -> list[OrderVerdict]:
        if self.failing:
            self.failing -= 1
            raise ValueError("a response that can't be read")
        with self.answered:
            self.orders += orders
            self.answered.notify_all()
        return [OrderVerdict(order_id=order.order_id, accepted=True, epoch=1) for order in orders]

    def report_withheld(self, orders: list[WithheldOrder], session: SessionKey) -> int:
        with self.answered:
            if self.away:
                raise QmtlError("E_UNAVAILABLE", "away")
            self.withheld += orders
            self.answered.notify_all()
        return len(orders)

    def ack_session(self, session: SessionKey, sequence: int) -> None:
        with self.answered:
            self.acks.append((session, sequence))
            self.answered.notify_all()

    def open_session(self, request: Any, patience_s: float) -> SessionGrant:
        return SessionGrant(
            session_id="s" * 32,
            secret="x",
            world_id="w",
            strategy_id=request.strategy_id,
            context=ComputeContext(world_id="w", execution_domain=Domain.DRYRUN),
            queue_map={},
            history_keys={},
            lease_s=0.03,
            now=datetime.now(UTC),
        )

    def session_heartbeat(self, session: SessionKey, report: SessionHeartbeat) -> SessionLease:
        with self.answered:
            self.tried += 1
            self.answered.notify_all()
            if self.away:
                raise QmtlError("E_UNAVAILABLE", "away")
            self.heartbeats.append(report)
            self.answered.notify_all()
        now = datetime.now(UTC)
        return SessionLease(session_id=session.session_id, expires_at=now, now=now)

    def subscribe(self, *_: Any, **__: Any) -> None:
        raise QmtlError("E_UNAVAILABLE", "no stream")

    def queues_by_tag(self, *_: Any) -> list[Any]:
        return []

    def end_session(self, *_: Any, **__: Any) -> None: ...

    def close(self) -> None: ...

    def wait(self, condition: Callable[[], bool]) -> bool:
        with self.answered:
            return self.answered.wait_for(condition, LIMIT_S)


def publisher(gateway: Gateway, on_verdict: Any = None) -> OrderPublisher:
    return OrderPublisher(gateway, OpenGate(), "w", "strategy:a", lambda: KEY, on_verdict)  # type: ignore[arg-type]


def intent(
    quantity: float = 1.0, price: float | None = 1.0, bar: int = 1, symbol: str = "AAPL"
) -> OrderIntent:
    return OrderIntent("n", bar, datetime.now(UTC), symbol, quantity, price)


def fail(*_: Any) -> None:
    raise ZeroDivisionError("of the author")


# what an order can't hold


@pytest.mark.parametrize("quantity", [0.1 + 0.2 - 0.3, -(0.1 + 0.2 - 0.3), 1e-13])
def test_a_quantity_that_rounds_to_0_is_no_order(quantity: float) -> None:
    orders = publisher(Gateway())
    assert (orders.enqueue(intent(quantity)), dict(orders.blocked)) == (False, {})


@pytest.mark.parametrize("quantity", [1e16, -1e16, 1e300, float("inf"), float("nan")])
def test_a_quantity_that_no_order_can_hold_is_blocked_and_counted(quantity: float) -> None:
    orders = publisher(Gateway())
    assert not orders.enqueue(intent(quantity))
    assert dict(orders.blocked) == {"no order can hold its quantity": 1}


@pytest.mark.parametrize("price", [1e16, float("inf"), float("nan"), 1e-13, 0.0, -1.0])
def test_an_order_whose_price_cannot_be_held_is_sent_without_a_price(price: float) -> None:
    orders = publisher(Gateway())
    assert orders.enqueue(intent(price=price))
    assert orders._orders[0].order.reference_price is None


def test_the_largest_and_smallest_amounts_are_sent_as_they_are() -> None:
    orders = publisher(Gateway())
    assert orders.enqueue(intent(9999999999999998.0, 1e-12))
    order = orders._orders[0].order
    assert (order.quantity, order.reference_price) == (Decimal("9999999999999998"), Decimal("1e-12"))


def test_another_value_that_an_order_cannot_hold_is_blocked_with_its_field() -> None:
    orders = publisher(Gateway())
    assert not orders.enqueue(intent(symbol="A" * 65))
    (reason,) = orders.blocked
    assert "symbol" in reason
    assert "64" in reason


# callbacks


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_failing_on_verdict_closes_the_gate_and_acknowledgements_go_on(error: type[BaseException]) -> None:
    def on_verdict(order: Order, verdict: OrderVerdict) -> None:
        raise error("of the author")

    gateway = Gateway()
    orders = publisher(gateway, on_verdict)
    orders.start()
    try:
        assert orders.enqueue(intent())
        assert gateway.wait(lambda: len(gateway.orders) == 1)
        orders.acknowledge(KEY, 7)
        assert gateway.wait(lambda: gateway.acks == [(KEY, 7)])
    finally:
        orders.close()
    assert not orders.enqueue(intent(bar=2))
    assert orders.blocked == {f"on_verdict has raised an exception: {error.__name__}: of the author": 1}


def test_a_response_that_cannot_be_read_is_a_fault_until_the_order_is_sent_again() -> None:
    gateway = Gateway()
    orders = publisher(gateway)
    gateway.failing = 1
    orders.start()
    try:
        assert orders.enqueue(intent())
        assert gateway.wait(lambda: len(gateway.orders) == 1)
    finally:
        orders.close()
    assert (orders.accepted, orders._gate.faults) == (1, {})


def test_a_failing_on_output_closes_the_gate_and_the_other_rows_are_processed() -> None:
    seen: list[int] = []

    def on_output(row: OutputRow) -> None:
        seen.append(row.ts)
        fail()

    faults: dict[str, str] = {}
    inputs = SimpleNamespace(build=SimpleNamespace(by_id={}), on_output=on_output, gateways=[Gateway()])
    rows = RowProcessor(inputs, None, None, faults, lambda: SessionKey("s"), threading.Event())  # type: ignore[arg-type]
    node = Node(name="n", interval=60, period=1)
    rows.add_outputs([OutputRow(node, ts, {}, "") for ts in (1, 2)], {}, datetime.now(UTC))
    assert seen == [1, 2]
    assert faults == {"on_output": "on_output has raised an exception: ZeroDivisionError: of the author"}


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


# the loop


class Reader(Strategy):
    def setup(self) -> None:
        query = TagQueryNode(query_tags=["a"], interval="1m", period=1)
        self.add_nodes([query, Node(query, lambda view: 0.0, name="zero")])


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def running(gateway: Gateway) -> RunningStrategy:
    world = World(spec=WorldSpec(world="w"), created_at=datetime.now(UTC), etag="e")
    return RunningStrategy(
        RunInputs(BuiltStrategy(Reader), world, [gateway], [], {}, "r")  # type: ignore[list-item]
    )


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (ZeroDivisionError("bad\0text"), "ZeroDivisionError: bad�text"),
        (SystemExit("bye"), "SystemExit: bye"),
        (Unprintable(), "Unprintable: <exception str() failed>"),
    ],
    ids=["text", "exit", "unprintable"],
)
def test_an_exception_of_the_loop_closes_the_gate_and_heartbeats_report_it(
    running: RunningStrategy, gateway: Gateway, error: BaseException, shown: str
) -> None:
    def poll() -> None:
        raise error

    running.tags = SimpleNamespace(poll=poll)  # type: ignore[assignment]
    running.start()
    try:
        assert gateway.wait(lambda: bool(gateway.heartbeats) and "stopped" in gateway.heartbeats[-1].fault)
    finally:
        running.close()
    told = gateway.heartbeats[-1]
    assert (told.gate, told.reason) == ("closed", told.fault)
    assert told.fault.startswith("the strategy has stopped computing: ")
    assert told.fault.endswith(shown)


def test_a_heartbeat_that_cannot_be_built_is_a_fault_and_the_next_is_sent(
    running: RunningStrategy, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, failed = running.report, list[str]()

    def failing_once() -> SessionHeartbeat:
        if not failed:
            failed.append("x")
            fail()
        return report()

    monkeypatch.setattr(running, "report", failing_once)
    monkeypatch.setattr(running, "tags", SimpleNamespace(poll=lambda: []))
    running.start()
    try:
        assert gateway.wait(lambda: len(gateway.heartbeats) > 1)
    finally:
        running.close()
    assert "a heartbeat can't be sent: ZeroDivisionError" in gateway.heartbeats[0].reason


def test_a_stream_that_has_ended_for_good_closes_the_gate(running: RunningStrategy, gateway: Gateway) -> None:
    def subscribe(*_: Any, **__: Any) -> None:
        fail()

    gateway.subscribe = subscribe  # type: ignore[method-assign]
    running.stream._reader.last_frame_at = float("inf")  # not silent
    running.stream.start()
    running.stream._thread.join(LIMIT_S)
    told = running.report()
    assert told.reason == told.fault == "the stream has ended: ZeroDivisionError: of the author"


# a cancelled submission


def test_a_submission_that_is_cancelled_in_its_last_step_closes_what_it_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed: list[str] = []
    reached, cancelled = threading.Event(), threading.Event()

    def run(self: Submission) -> Any:
        reached.set()
        assert cancelled.wait(LIMIT_S)
        return SimpleNamespace(running=SimpleNamespace(close=lambda: closed.append("strategy")))

    monkeypatch.setattr(Submission, "run", run)

    async def cancel_late() -> None:
        work = asyncio.create_task(Runner.submit_async(Reader, world="w"))
        assert await asyncio.to_thread(reached.wait, LIMIT_S)
        work.cancel()
        asyncio.get_running_loop().call_soon(cancelled.set)
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancel_late())
    assert closed == ["strategy"]
    assert Runner._running == []


# a snapshot that does not match its hash


def snapshot(sequence: int, *, wrong: bool = False) -> Snapshot:
    events = (event("policy", sequence),)
    found = "wrong" if wrong else TopicState(sequence, events).state_hash
    return Snapshot(
        topic="policy", log="log", sequence=sequence, reason="first", events=events, state_hash=found
    )


def test_a_snapshot_with_a_wrong_hash_is_not_used() -> None:
    reader = TopicReader(["policy"], None, None)
    reader.apply(snapshot(3))
    at = reader.last_frame_at
    with pytest.raises(QmtlError, match="does not match its hash"):
        reader.apply(snapshot(9, wrong=True))
    state = reader.states["policy"]
    assert (state.sequence, state.events["policy"].data) == (3, {"world_id": "w", "version": 3})
    assert reader.positions == {}  # so the next start is a snapshot
    assert reader.last_frame_at == at  # a Gateway whose frames can't be used is silent
    reader.apply(snapshot(9))
    reader.apply(EventFrame(topic="policy", sequence=10, event=event("policy", 10)))
    assert reader.positions == {"policy": 10}


# what heartbeats report


def test_a_cache_hit_is_reported_until_a_gateway_has_acknowledged_it_and_no_more(gateway: Gateway) -> None:
    """A later session must not report it again: it would halt the strategy once more."""
    world = World(spec=WorldSpec(world="w"), created_at=datetime.now(UTC), etag="e")
    hits = CacheHitReports(["a", "b"])

    def recompute(_: SessionGrant) -> dict[str, NodeOutput]:
        hits.add(["c"])
        return {}

    inputs = RunInputs(
        BuiltStrategy(Reader),
        world,
        [gateway],  # type: ignore[list-item]
        [],
        {},
        "r",
        hits=hits,
        recompute=recompute,
    )
    strategy = RunningStrategy(inputs)
    gateway.away = True
    strategy.start()
    try:
        assert gateway.wait(lambda: gateway.tried >= 2)
        assert strategy.report().cross_context_hits == ("a", "b")
        with gateway.answered:
            gateway.away = False
        assert gateway.wait(lambda: len(gateway.heartbeats) >= 2)
        assert [item.cross_context_hits for item in gateway.heartbeats[:2]] == [("a", "b"), ()]
        strategy.activation = SimpleNamespace(domain=Domain.LIVE, silence_s=0.0)  # type: ignore[assignment]
        assert gateway.wait(lambda: any("c" in item.cross_context_hits for item in gateway.heartbeats))
    finally:
        strategy.close()
