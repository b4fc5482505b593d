"""The fence on a real database.

An order passes only where everything allows it, and says why where it does not.
"""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection

from activities.fence.acceptance import OrderAcceptance
from activities.fence.lock_waits import LockWaitQueues
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.fence.requests import OrdersRequest
from activities.fence.rules import FROZEN
from activities.fence.snapshot import FenceSnapshot
from activities.fence.state import locked_fence
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.storage.database import Database
from activities.storage.transactions import utc_before, utc_now
from activities.worlds.edges import SqlEdgeStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.fills import Fill, filled_by
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import CircuitBreaker, WorldUpdate
from tests.support.desk import Desk, new_order_id
from tests.support.machine import wait_for
from tests.support.statements import statements


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading."""
    found = Desk(database)
    found.apply("dryrun")
    return found


def test_an_order_is_accepted_once_and_answered_the_same_for_ever(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    first = orders.publish([order], desk.caller)[0]
    assert first.accepted
    desk.freeze(desk.request("live"))
    assert orders.publish([order], desk.caller)[0].accepted, (
        "what was accepted before the freeze is not accepted anew, and not denied"
    )
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 1
    assert [record.order.order_id for record in SqlOrderLog(desk.database).orders(desk.world)] == [
        order.order_id
    ]


def freeze(desk: Desk) -> None:
    desk.freeze(desk.request("live"))


def drain(desk: Desk) -> None:
    run = desk.request("live")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)


def halted(desk: Desk) -> None:
    desk.fence.halt(desk.world, "olga", "I do not like it")


def halted_strategy(desk: Desk) -> None:
    SqlStrategyHalts(desk.database).halt(desk.world, desk.strategies[0], "olga", "I do not like it")


CASES: list[tuple[Refusal, Callable[[Desk], Any], dict[str, Any]]] = [
    (Refusal.SHADOW, lambda desk: None, {"execution_domain": "shadow"}),
    (Refusal.HALTED, halted, {}),
    (Refusal.STRATEGY_HALTED, halted_strategy, {}),
    (Refusal.FROZEN, freeze, {}),
    (Refusal.DRAINING, drain, {}),
    (Refusal.STALE_EPOCH, lambda desk: None, {"epoch": -1}),
    (Refusal.STALE_EPOCH, lambda desk: None, {"epoch": 1}),
    (
        Refusal.STALE_DECISION,
        lambda desk: desk.decide(at=datetime.now(UTC) - timedelta(seconds=61), ttl=60),
        {},
    ),
    (Refusal.NO_SESSION, lambda desk: desk.end_sessions(), {}),
    (Refusal.NOT_ACTIVE, lambda desk: desk.decide(active=False), {}),
    (Refusal.NOT_ACTIVE, lambda desk: None, {"strategy_id": "strategy:other"}),
    (Refusal.WRONG_DOMAIN, lambda desk: None, {"execution_domain": "live"}),
    (Refusal.WRONG_DOMAIN, lambda desk: None, {"execution_domain": "backtest"}),
]


@pytest.mark.parametrize(("reason", "happens", "fields"), CASES)
def test_each_reason_to_refuse(
    desk: Desk, reason: Refusal, happens: Callable[[Desk], Any], fields: dict[str, Any]
) -> None:
    domain, strategy = fields.get("execution_domain", "dryrun"), fields.get("strategy_id")
    session = desk.session(strategy, domain)
    happens(desk)
    epoch = desk.epoch + fields["epoch"] if fields.get("epoch", 0) < 0 else fields.get("epoch", desk.epoch)
    orders = OrderAcceptance(desk.database)
    order = desk.order(session, **{"execution_domain": domain, **fields, "epoch": epoch})
    verdict = orders.publish([order], desk.caller)[0]
    assert (verdict.accepted, verdict.reason) == (False, reason)
    kept = SqlOrderLog(desk.database).orders(desk.world)[-1]
    assert (kept.state, kept.reason, kept.order) == ("refused", reason, order)
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 0
    assert SqlOrderLog(desk.database).counts(desk.world) == {reason.value: 1}


def test_a_world_in_a_state_that_is_not_known_refuses_orders(desk: Desk) -> None:
    session = desk.session()
    with desk.database.write("test", bookkeeping=True) as tx:
        fence = locked_fence(tx, desk.world)
        fence.state = "paused"
        tx.session.add(fence)
    verdict = OrderAcceptance(desk.database).publish([desk.order(session, desk.epoch)], desk.caller)[0]
    assert verdict.reason is Refusal.FROZEN


def test_an_answer_repeats_the_epoch_of_its_moment(desk: Desk) -> None:
    orders, session = OrderAcceptance(desk.database), desk.session()
    good = desk.order(session, desk.epoch)
    late = desk.order(session, desk.epoch - 1)
    first = orders.publish([good, late], desk.caller)
    assert [(item.accepted, item.epoch) for item in first] == [(True, desk.epoch), (False, desk.epoch)]
    desk.fence.halt(desk.world, "olga", "")
    assert orders.publish([good, late], desk.caller) == first
    other_gateway = OrderAcceptance(desk.database)
    desk.steps.resume(desk.world, "olga", "")
    assert other_gateway.publish([good, late], desk.caller) == first


def test_a_session_that_has_ended_has_no_orders(desk: Desk) -> None:
    orders, mine = OrderAcceptance(desk.database), desk.session()
    desk.sessions.end(mine, "stopped", "ana")
    assert orders.publish([desk.order(mine, desk.epoch)], desk.caller)[0].reason is Refusal.NO_SESSION


def test_live_needs_the_world_and_the_edge_besides_the_stage(desk: Desk) -> None:
    orders = OrderAcceptance(desk.database)
    desk.apply("live")
    session = desk.session(domain="live")
    again = desk.order(session, desk.epoch, execution_domain="live")
    assert orders.publish([again], desk.caller)[0].accepted, "the router's own restart refuses nothing"


@pytest.mark.parametrize(("age_s", "state"), [(21.0, "running"), (21.0, "stopped"), (0.0, "standby")])
def test_live_orders_are_refused_while_no_router_works_and_dryrun_orders_wait(
    desk: Desk, age_s: float, state: str
) -> None:
    """Live orders were accepted without end, while nobody could send them."""
    orders, other = OrderAcceptance(desk.database), Desk(desk.database, "dryrun")
    other.apply("dryrun")
    desk.apply("live")
    desk.route(utc_before(timedelta(seconds=age_s)), state)
    assert orders.publish([other.order(other.session(), other.epoch)], other.caller)[0].accepted
    session = desk.session(domain="live")
    live = desk.order(session, desk.epoch, execution_domain="live")
    assert orders.publish([live], desk.caller)[0].reason is Refusal.NO_ROUTER
    desk.route(utc_before(timedelta(seconds=15)), "stopped")
    assert orders.publish([desk.order(session, desk.epoch, execution_domain="live")], desk.caller)[
        0
    ].accepted, "the router's own restart refuses nothing"


def test_closing_the_edge_to_live_writes_it_once_and_renews_its_reason(desk: Desk) -> None:
    desk.apply("live")
    for reason in ("doubts", "more doubts"):
        edge = EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason=reason)
        with statements() as ran:
            desk.fence.override(desk.world, edge, "olga")
        changes = ("INSERT INTO edge_override", "UPDATE edge_override")
        assert len([statement for statement, _ in ran if statement.startswith(changes)]) == 1
        found = [(item.active, item.reason) for item in SqlEdgeStore(desk.database).overrides(desk.world)]
        assert found == [(False, reason)]
        assert not desk.fence_row().live_edge


@pytest.mark.parametrize(
    ("src", "dst"),
    [
        ("domain:backtest", "domain:dryrun"),
        ("domain:live", "domain:backtest"),
        ("domain:dryrun", "domain:live"),
        ("blake3:a", "blake3:b"),
    ],
)
@pytest.mark.parametrize("active", [True, False])
def test_an_edge_without_effect_is_refused(desk: Desk, src: str, dst: str, active: bool) -> None:
    """It was answered with 200, and whoever closed it was not safer than before."""
    store = SqlEdgeStore(desk.database)
    before, live = store.overrides(desk.world), desk.fence_row().edge_closings
    with pytest.raises(QmtlError, match="E_EDGE_NO_EFFECT"):
        desk.fence.override(desk.world, EdgeOverride(src=src, dst=dst, active=active), "olga")
    assert (store.overrides(desk.world), desk.fence_row().edge_closings) == (before, live)


def test_a_circuit_breaker_halts_the_world_until_someone_resumes_it(database: Database) -> None:
    desk = Desk(database)
    desk.apply("dryrun")
    desk.rules.update_world(
        desk.world, WorldUpdate(circuit_breaker=CircuitBreaker(max_orders_per_minute=3)), "olga"
    )
    orders, session = OrderAcceptance(database), desk.session()
    verdicts = orders.publish([desk.order(session, desk.epoch) for _ in range(5)], desk.caller)
    assert sum(verdict.accepted for verdict in verdicts) == 3
    assert {verdict.reason for verdict in verdicts if not verdict.accepted} == {Refusal.CIRCUIT_BREAKER}
    assert "more than 3 orders" in desk.fence_row().halted
    assert orders.publish([desk.order(session, desk.epoch)], desk.caller)[0].reason is Refusal.HALTED
    assert "circuit breaker" in desk.steps.resume(desk.world, "olga", "looked at it")[0]
    assert desk.fence_row().halted == ""


def test_a_circuit_breaker_counts_the_present_minute_only(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single order was refused, and its world halted, because of the minute before."""
    breaker = CircuitBreaker(max_orders_per_minute=3)
    desk.rules.update_world(desk.world, WorldUpdate(circuit_breaker=breaker), "olga")
    orders, session, now = OrderAcceptance(desk.database), desk.session(), datetime.now(UTC)
    for minutes in (2, 1, 0):
        at = (now - timedelta(minutes=minutes)).isoformat(timespec="microseconds")
        monkeypatch.setattr("activities.fence.deciding.utc_now", lambda at=at: at)
        verdicts = orders.publish([desk.order(session, desk.epoch) for _ in range(3)], desk.caller)
        assert [verdict.reason for verdict in verdicts] == [None, None, None]
    assert desk.fence_row().halted == ""


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "accepted"),
    [
        ((-0.1, 0.1), [3, 3, 0]),
        ((0.1, -0.1), [3, 0]),
        ((-0.1, -0.1), [3, 0]),
        ((0, 59.9), [3, 0]),
        ((180, 0), [3, 3]),
        ((60, 0), [3, 0]),
    ],
)
def test_clocks_that_differ_evade_no_circuit_breaker(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, float], accepted: list[int]
) -> None:
    """Around a minute, two Gateways whose clocks differed by 0.2 s began to count anew with each order.

    A minute that lies further ahead was stored by a wrong clock, and stops nothing.
    """
    breaker = CircuitBreaker(max_orders_per_minute=3)
    desk.rules.update_world(desk.world, WorldUpdate(circuit_breaker=breaker), "olga")
    orders, session = OrderAcceptance(desk.database), desk.session()
    found: list[int] = []
    for second in (*seconds, seconds[0])[: len(accepted)]:
        at = (NOON + timedelta(seconds=second)).isoformat(timespec="microseconds")
        monkeypatch.setattr("activities.fence.deciding.utc_now", lambda at=at: at)
        verdicts = orders.publish([desk.order(session, desk.epoch) for _ in range(3)], desk.caller)
        found.append(sum(verdict.accepted for verdict in verdicts))
    assert found == accepted


def test_a_breaker_that_trips_on_refused_orders_lets_none_of_the_batch_pass_after_it(desk: Desk) -> None:
    breaker = CircuitBreaker(max_refused_per_minute=2)
    desk.rules.update_world(desk.world, WorldUpdate(circuit_breaker=breaker), "olga")
    session, epoch = desk.session(), desk.epoch
    batch = [
        *(
            desk.order(session, epoch + 1, order_id=new_order_id(desk.world, desk.strategies[0], number))
            for number in range(3)
        ),
        desk.order(session, epoch, order_id=new_order_id(desk.world, desk.strategies[0], 9)),
    ]
    verdicts = OrderAcceptance(desk.database).publish(batch, desk.caller)
    assert verdicts[-1].reason is Refusal.CIRCUIT_BREAKER
    assert "more than 2 refused orders" in desk.fence_row().halted


def test_several_gateways_count_together_for_the_circuit_breaker(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.rules.update_world(
        desk.world, WorldUpdate(circuit_breaker=CircuitBreaker(max_orders_per_minute=40)), "olga"
    )
    session, epoch, moment = desk.session(), desk.epoch, utc_now()
    monkeypatch.setattr("activities.fence.deciding.utc_now", lambda: moment)  # all in one minute

    def publish(orders: OrderAcceptance) -> int:
        return sum(orders.publish([desk.order(session, epoch)], desk.caller)[0].accepted for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(publish, [OrderAcceptance(desk.database) for _ in range(4)])) == 40
    assert "more than 40 orders" in desk.fence_row().halted


def test_fills_end_an_order_once(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    orders.publish([order], desk.caller)
    open_orders = SqlOpenOrders(desk.database, 300.0)
    assert [found.order() for found in open_orders.due(Domain.DRYRUN, 10)[desk.world]] == [order]
    fill = Fill(fill_id="f1", quantity=order.quantity, price=order.reference_price, account="paper")
    for state in ("filled", "cancelled"):
        open_orders.record(desk.world, [OrderReport(order_id=order.order_id, state=state, fills=(fill,))], {})
    assert open_orders.due(Domain.DRYRUN, 10) == {}
    record = SqlOrderLog(desk.database).orders(desk.world)[0]
    assert (record.state, record.fill) == ("filled", filled_by([fill]))


def test_many_publishers_at_once_each_get_their_own_answer(desk: Desk) -> None:
    orders, session, epoch = OrderAcceptance(desk.database), desk.session(), desk.epoch
    answers: dict[str, bool] = {}

    def publish(number: int) -> None:
        for n in range(25):
            good = (number + n) % 2 == 0
            order = desk.order(session, epoch if good else epoch - 1)
            answers[order.order_id] = orders.publish([order], desk.caller)[0].accepted is good

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 200
    assert all(answers.values())
    assert SqlOrderLog(desk.database).counts(desk.world) == {"accepted": 100, "stale_epoch": 100}


def test_the_same_order_from_two_gateways_at_once_is_one_order(desk: Desk) -> None:
    session, epoch = desk.session(), desk.epoch
    batch = [desk.order(session, epoch) for _ in range(20)]
    stores = [OrderAcceptance(desk.database) for _ in range(4)]
    threads = [
        threading.Thread(target=store.publish, args=(batch if n % 2 else batch[::-1], desk.caller))
        for n, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert SqlOrderLog(desk.database).counts(desk.world) == {"accepted": 20}
    assert SqlOrderLog(desk.database).open_orders(desk.world) == 20


def test_orders_wait_for_a_freeze_that_is_under_way(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    with desk.database.write("test", bookkeeping=True) as tx:
        fence = locked_fence(tx, desk.world)
        fence.state, fence.epoch = FROZEN, fence.epoch + 1
        tx.session.add(fence)
        tx.session.flush()
        answer = orders.submit([order], desk.caller)
        with pytest.raises(TimeoutError):
            answer.result(0.5)
    assert answer.result(30)[0].reason is Refusal.FROZEN


def test_a_freeze_waits_for_orders_that_are_under_way(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An order that saw an open world is in the log before the freeze."""
    orders, order, run = (
        OrderAcceptance(desk.database),
        desk.order(desk.session(), desk.epoch),
        desk.request("live"),
    )
    looked, go, look = threading.Event(), threading.Event(), orders._statements.read

    def slow(*args: Any) -> Any:
        seen = look(*args)
        looked.set()
        assert go.wait(30)
        return seen

    monkeypatch.setattr(orders._statements, "read", slow)
    answer = orders.submit([order], desk.caller)
    assert looked.wait(30)
    with ThreadPoolExecutor(1) as pool:
        frozen = pool.submit(desk.freeze, run)
        try:
            with pytest.raises(TimeoutError):
                frozen.result(0.5)
        finally:
            go.set()
        assert answer.result(30)[0].accepted
        frozen.result(30)
    assert desk.logged()[-2:] == ["accepted", "freeze"]


def test_a_world_that_does_not_exist_refuses_the_request_and_no_other(desk: Desk) -> None:
    orders = OrderAcceptance(desk.database)
    lost = desk.order("s", 1, world_id="nowhere")
    with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
        orders.publish([lost], desk.caller)
    assert SqlOrderLog(desk.database).counts(desk.world) == {}


def test_what_one_asks_wrongly_costs_nobody_else_their_answer(desk: Desk) -> None:
    """Requests that wait together are served together.

    A world that nobody knows, a text that no database can hold, a value that the rules fail at.
    """
    orders, session, epoch = OrderAcceptance(desk.database), desk.session(), desk.epoch
    known, good, blocker = (desk.order(session, epoch) for _ in range(3))
    orders.publish([known], desk.caller)
    bad = {
        "nowhere": known.model_copy(update={"world_id": "nowhere"}),
        "unstorable": desk.order(session, epoch).model_copy(update={"strategy_id": "strategy:\x00"}),
        "faulty": desk.order(session, epoch).model_copy(update={"quantity": object()}),
    }
    with desk.database.write(
        "test", bookkeeping=True
    ) as tx:  # while this holds the fence, the first is tried and the others wait behind it
        tx.lock(f"fence:{desk.world}")
        answers = {
            "blocker": orders.submit([blocker], desk.caller),
            **{name: orders.submit([order], desk.caller) for name, order in bad.items()},
            "known": orders.submit([known], desk.caller),
            "good": orders.submit([good], desk.caller),
        }
    for name in ("blocker", "known", "good"):
        assert answers[name].result(30)[0].accepted, name
    with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
        answers["nowhere"].result(30)
    assert not isinstance(answers["faulty"].exception(30), QmtlError | None)
    if answers["unstorable"].exception(30) is None:
        assert not answers["unstorable"].result()[0].accepted
    else:
        with pytest.raises(QmtlError, match="E_BODY_INVALID"):
            answers["unstorable"].result()


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_lost_connection_is_said_and_not_used_again(
    desk: Desk, dsn: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("activities.storage.postgres._IDLE_S", 60.0)  # none is tried before it is used
    orders, session, epoch = OrderAcceptance(desk.database), desk.session(), desk.epoch
    orders.publish([desk.order(session, epoch)], desk.caller)
    with psycopg.connect(dsn) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    lost = desk.order(session, epoch)
    with pytest.raises(QmtlError, match="E_UNAVAILABLE"):
        orders.publish([lost], desk.caller)
    assert [orders.publish([lost], desk.caller)[0].accepted for _ in range(2)] == [True, True]
    assert not caplog.records, "the pool took it back and stumbled over it"


def test_an_order_that_waited_too_long_says_whose_fence_was_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.fence.lock_waits._LIMIT_S", 0.0)
    request = OrdersRequest([desk.order(desk.session(), desk.epoch)], desk.caller, 0.0)
    assert LockWaitQueues._in_time(desk.world, [request]) == []
    with pytest.raises(QmtlError, match=f"the fence of world {desk.world} was held by another transaction"):
        request.answer.result(0)


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)  # SQLite has one writer
def test_requests_of_a_held_world_go_to_its_queue_at_once(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them made a transaction of the other worlds' orders fail, and start again without it."""
    orders, session, epoch = OrderAcceptance(desk.database), desk.session(), desk.epoch
    tried = list[str]()
    read = orders._statements.read

    def noted(connection: Connection, asked: Sequence[Order], tokens: set[str], wait: bool) -> FenceSnapshot:
        if not wait:
            tried.extend(order.order_id for order in asked)
        return read(connection, asked, tokens, wait)

    monkeypatch.setattr(orders._statements, "read", noted)
    first, *later = (desk.order(session, epoch) for _ in range(9))
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.lock(f"fence:{desk.world}")
        answers = [orders.submit([first], desk.caller)]
        wait_for(lambda: orders._held._waiting, "queue of the held world")
        for order in later:
            answers.append(orders.submit([order], desk.caller))
            time.sleep(0.01)  # a transaction for each, were they tried
        assert tried == [first.order_id]
    assert all(answer.result(30)[0].accepted for answer in answers)


def test_busy_callers_leave_the_queue_of_a_held_fence(desk: Desk) -> None:
    """There, no transaction waits for callers to gather: it would answer each alone, without an end."""
    session = desk.session()
    first, meanwhile, later = (
        OrdersRequest([desk.order(session, desk.epoch)], desk.caller, time.monotonic()) for _ in range(3)
    )
    answered, requeued = list[OrdersRequest](), list[OrdersRequest]()

    def answer(batch: Sequence[OrdersRequest]) -> None:
        answered.extend(batch)
        assert queues.enqueue_if_held(meanwhile)

    queues = LockWaitQueues(answer, requeued.extend)
    queues.enqueue([first], first.worlds)
    wait_for(lambda: requeued, "end of the queue")
    assert (answered, requeued) == ([first], [meanwhile])
    assert not queues.enqueue_if_held(later)
