"""Only who opened a session orders in it, and an order id answers for one order alone."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from activities.fence.acceptance import OrderAcceptance
from activities.fence.callers import OrderCaller
from activities.fence.order_log import SqlOrderLog
from activities.fence.withheld import SqlWithheldOrders
from activities.sessions.holder import SessionCaller
from activities.storage.database import Database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import Order, OrderVerdict, WithheldOrder, order_id, order_id_prefix
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.contracts.worlds import CircuitBreaker, WorldUpdate
from tests.support.desk import Desk, new_order_id


@pytest.fixture
def desk(database: Database) -> Desk:
    """In paper trading."""
    found = Desk(database)
    found.apply("dryrun")
    return found


def content(database: Database) -> dict[str, list[Any]]:
    """Everything in the tables that an order may change."""
    with database.read() as session:
        return {
            table: [tuple(row) for row in session.connection().execute(text(f"SELECT * FROM {table}"))]
            for table in ("order_log", "open_order", "fence", "session", "audit", "outbox")
        }


def others(desk: Desk, order: Order) -> dict[str, tuple[Order, OrderCaller]]:
    """An order as others would send it in the session of `ana`."""
    session, secrets = order.session_id, desk.caller.secrets
    other_strategy = desk.session("strategy:other")
    other_world = Desk(desk.database, "other")
    foreign = other_world.session()
    return {
        "no secret": (order, OrderCaller("ana", {})),
        "a wrong secret": (order, OrderCaller("ana", {session: "guessed"})),
        "the hash for the secret": (order, OrderCaller("ana", {session: stored_hash(desk, session)})),
        "the secret of another session": (
            order,
            OrderCaller("ana", {session: desk.caller.secrets[other_strategy]}),
        ),
        "another actor with the secret": (order, OrderCaller("eve", secrets)),
        "no session": (order.model_copy(update={"session_id": ""}), OrderCaller("ana", {"": ""})),
        "a session that there is not": (
            order.model_copy(update={"session_id": "x" * 32}),
            OrderCaller("ana", {"x" * 32: "y"}),
        ),
        "a session of another strategy": (
            order.model_copy(update={"session_id": other_strategy}),
            desk.caller,
        ),
        "a session of another world": (
            order.model_copy(update={"session_id": foreign}),
            replace(other_world.caller),
        ),
    }


def stored_hash(desk: Desk, session: str) -> str:
    return desk.sessions.find(session).secret_hash


def test_only_its_holder_orders_in_a_session_and_others_leave_no_trace(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    attempts = others(desk, order)
    before = content(desk.database)
    for name, (sent, caller) in attempts.items():
        verdict = orders.publish([sent], caller)[0]
        assert (verdict.accepted, verdict.reason) == (False, Refusal.NO_SESSION), name
        assert content(desk.database) == before, name
    assert orders.publish([order], desk.caller)[0].accepted, "its id was used up by an order of someone else"
    for name, (sent, caller) in attempts.items():
        assert orders.publish([sent], caller)[0].reason is Refusal.NO_SESSION, (
            f"{name}: the answer of an order is told to nobody else"
        )


def test_orders_of_others_do_not_trip_a_circuit_breaker(desk: Desk) -> None:
    desk.rules.update_world(
        desk.world, WorldUpdate(circuit_breaker=CircuitBreaker(max_refused_per_minute=2)), "olga"
    )
    orders, session, epoch = OrderAcceptance(desk.database), desk.session(), desk.epoch
    eve = OrderCaller("eve", {})
    for _ in range(5):
        orders.publish([desk.order(session, epoch - 1) for _ in range(5)], eve)
    assert desk.fence_row().halted == ""
    assert orders.publish([desk.order(session, epoch)], desk.caller)[0].accepted


def test_an_order_of_another_that_waits_with_mine_under_its_id_is_not_decided_first(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    blocker = desk.order(order.session_id, desk.epoch)
    with desk.database.write("test", bookkeeping=True) as tx:
        tx.lock(f"fence:{desk.world}")  # the first is tried and the others wait behind it
        first = orders.submit([blocker], desk.caller)
        theirs = orders.submit([order.model_copy(update={"symbol": "EVIL"})], OrderCaller("eve", {}))
        mine = orders.submit([order], desk.caller)
    assert first.result(30)[0].accepted
    assert theirs.result(30)[0].reason is Refusal.NO_SESSION
    assert mine.result(30)[0].accepted


def test_a_secret_is_returned_once_and_stored_as_a_hash_only(desk: Desk) -> None:
    wanted = SessionOpen(world_id=desk.world, strategy_id=desk.strategies[0], runner="r")
    first, second = (desk.sessions.open(wanted, "s", "dryrun", "ana") for _ in range(2))
    assert first.secret != second.secret
    assert len(first.secret) >= 43
    orders = OrderAcceptance(desk.database)
    caller = OrderCaller("ana", {first.info.session_id: first.secret})
    assert orders.publish([desk.order(first.info.session_id, desk.epoch)], caller)[0].accepted
    assert first.secret not in str(content(desk.database))
    assert first.secret not in repr((first, caller, SessionCaller("ana", first.secret)))
    stored = desk.sessions.find(first.info.session_id)
    stored.require_holder(SessionCaller("ana", first.secret))
    for other in (
        SessionCaller("eve", first.secret),
        SessionCaller("ana", second.secret),
        SessionCaller("ana"),
    ):
        with pytest.raises(QmtlError, match="E_SESSION_HOLDER"):
            stored.require_holder(other)


# order ids


def test_an_order_id_begins_with_the_prefix_of_its_strategy_and_world() -> None:
    base: dict[str, Any] = {
        "order_id": order_id("w", "strategy:a", "n", 1, "AAPL", "dryrun"),
        "world_id": "w",
        "strategy_id": "strategy:a",
        "execution_domain": "dryrun",
        "epoch": 1,
        "symbol": "AAPL",
        "side": "buy",
        "quantity": "1",
    }
    assert Order.model_validate(base).order_id.startswith(order_id_prefix("w", "strategy:a"))
    prefixes = {
        order_id_prefix(*item) for item in (("w", "a"), ("w", "b"), ("v", "a"), ("wa", "b"), ("w", "ab"))
    }
    assert len(prefixes) == 5
    for world, strategy in (("v", "strategy:a"), ("w", "strategy:b")):
        with pytest.raises(ValueError, match="begins with order:"):
            Order.model_validate({**base, "world_id": world, "strategy_id": strategy})
    with pytest.raises(ValueError, match="begins with order:"):
        Order.model_validate({**base, "order_id": "order:0000"})


def test_a_second_runner_gets_the_first_answer_and_another_order_under_the_id_is_refused_alone(
    desk: Desk,
) -> None:
    orders = OrderAcceptance(desk.database)
    order = desk.order(desk.session(), desk.epoch)
    first = orders.publish([order], desk.caller)
    assert first[0].accepted
    desk.fence.halt(desk.world, "olga", "")
    desk.steps.resume(desk.world, "olga", "")
    second = {"session_id": desk.session(), "epoch": desk.epoch}
    same = order.model_copy(update=second)
    changed = [
        order.model_copy(update={**second, **change})
        for change in ({"symbol": "MSFT"}, {"side": "sell"}, {"quantity": order.quantity * 2})
    ]
    new = desk.order(second["session_id"], desk.epoch)
    verdicts = orders.publish([same, *changed, new], desk.caller)
    assert verdicts[0] == first[0]
    assert [verdict.reason for verdict in verdicts[1:4]] == [Refusal.ORDER_REUSED] * 3
    assert verdicts[4].accepted, "the other orders of the request"
    assert SqlOrderLog(desk.database).counts(desk.world) == {"accepted": 2}


def test_two_orders_under_one_id_in_one_request_are_one_order_and_a_refusal(desk: Desk) -> None:
    orders, order = OrderAcceptance(desk.database), desk.order(desk.session(), desk.epoch)
    other = order.model_copy(update={"symbol": "MSFT"})
    verdicts = orders.publish([order, other, order], desk.caller)
    assert [verdict.reason for verdict in verdicts] == [None, Refusal.ORDER_REUSED, None]
    assert [record.order for record in SqlOrderLog(desk.database).orders(desk.world)] == [order]


def test_in_a_race_of_two_gateways_the_later_order_is_compared_with_the_line_that_stands(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other Gateway writes after this one has read, and before it writes."""
    session, epoch = desk.session(), desk.epoch
    mine, theirs = OrderAcceptance(desk.database), OrderAcceptance(desk.database)
    same, changed = desk.order(session, epoch), desk.order(session, epoch)
    others = [same, changed.model_copy(update={"symbol": "MSFT"})]
    read = mine._statements.read

    def stale_read(*args: Any) -> Any:
        found = read(*args)
        return replace(found, earlier={})

    assert all(verdict.accepted for verdict in theirs.publish(others, desk.caller))
    monkeypatch.setattr(mine._statements, "read", stale_read)
    verdicts = mine.publish([same, changed], desk.caller)
    assert [verdict.reason for verdict in verdicts] == [None, Refusal.ORDER_REUSED]
    assert SqlOrderLog(desk.database).counts(desk.world) == {"accepted": 2}


# withheld orders


def test_withheld_orders_are_recorded_once_with_their_reason_and_listed(desk: Desk) -> None:
    withheld, log = SqlWithheldOrders(desk.database), SqlOrderLog(desk.database)
    session = desk.session()
    held = [WithheldOrder(order=desk.order(session, desk.epoch), reason="the world is frozen")] * 2
    assert withheld.record(held, desk.caller) == 1
    desk.sessions.end(session, "stopped", "ana")
    again = [held[0].model_copy(update={"reason": "another"})]
    assert withheld.record(again, desk.caller) == 0, "also after the end of the session"
    (record,) = log.orders(desk.world)
    assert (record.state, record.accepted, record.reason, record.withheld, record.order) == (
        "withheld",
        False,
        Refusal.WITHHELD,
        "the world is frozen",
        held[0].order,
    )
    assert log.counts(desk.world) == {"withheld": 1}
    assert log.open_orders(desk.world) == 0
    assert log.orders(desk.world, OrderFilter(reason=Refusal.HALTED)) == []
    assert len(log.orders(desk.world, OrderFilter(reason=Refusal.WITHHELD))) == 1


def test_a_withheld_order_is_never_accepted_and_a_sent_one_is_never_withheld(desk: Desk) -> None:
    withheld, orders, session = (
        SqlWithheldOrders(desk.database),
        OrderAcceptance(desk.database),
        desk.session(),
    )
    held, sent = (desk.order(session, desk.epoch) for _ in range(2))
    withheld.record([WithheldOrder(order=held, reason="stale")], desk.caller)
    assert orders.publish([held], desk.caller)[0].reason is Refusal.WITHHELD
    assert orders.publish([held.model_copy(update={"symbol": "X"})], desk.caller)[0].reason is (
        Refusal.ORDER_REUSED
    )
    assert orders.publish([sent], desk.caller)[0].accepted
    assert withheld.record([WithheldOrder(order=sent, reason="late")], desk.caller) == 0
    records = SqlOrderLog(desk.database).orders(desk.world)
    assert [record.state for record in records] == ["withheld", "accepted"]


def test_an_order_that_is_sent_and_withheld_at_once_gets_one_answer(desk: Desk) -> None:
    session, epoch = desk.session(), desk.epoch
    batch = [desk.order(session, epoch) for _ in range(40)]
    reports = [WithheldOrder(order=order, reason="late") for order in batch]
    orders, withheld = OrderAcceptance(desk.database), SqlWithheldOrders(desk.database)

    def send() -> list[OrderVerdict]:
        return [orders.publish([order], desk.caller)[0] for order in batch]

    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(send)
        recorded = [withheld.record([report], desk.caller) for report in reversed(reports)]
        verdicts = sending.result(60)
    assert sum(verdict.accepted for verdict in verdicts) + sum(recorded) == len(batch)
    assert SqlOrderLog(desk.database).open_orders(desk.world) == sum(item.accepted for item in verdicts)


def test_withheld_orders_are_reported_by_the_holder_of_the_session_only(desk: Desk) -> None:
    withheld, session = SqlWithheldOrders(desk.database), desk.session()
    order = desk.order(session, desk.epoch)
    attempts = others(desk, order)
    before = content(desk.database)
    for name, (sent, caller) in attempts.items():
        with pytest.raises(QmtlError, match="E_SESSION_HOLDER"):
            withheld.record([WithheldOrder(order=sent, reason="late")], caller)
        assert content(desk.database) == before, name
    with pytest.raises(QmtlError, match="E_WORLD_UNKNOWN"):
        nowhere = order.model_copy(
            update={"world_id": "nowhere", "order_id": new_order_id("nowhere", order.strategy_id)}
        )
        withheld.record([WithheldOrder(order=nowhere, reason="late")], desk.caller)
