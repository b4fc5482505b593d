"""Sessions on a real database: how they end, while something else holds their world."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from activities.fence.acceptance import OrderAcceptance
from activities.fence.state import locked_fence
from activities.sessions.sql import LEASE_ENDED, SqlSessionStore
from activities.storage.database import Database
from activities.storage.tables import SessionRow
from activities.storage.transactions import RecordedChange, Transaction, utc_before
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionOpen
from tests.support.desk import Desk
from tests.support.machine import wait_for

LIMIT_S = 30.0
"""Against a test that hangs, not a measurement."""


def wanted(world: str) -> SessionOpen:
    return SessionOpen(world_id=world, strategy_id=f"strategy:{world}0", runner="r", host="h")


def over(database: Database, world: str, many: int = 1) -> list[str]:
    """Sessions whose lease has ended."""
    store = SqlSessionStore(database, -1.0)
    return [store.open(wanted(world), "s", "dryrun", "ana").info.session_id for _ in range(many)]


def test_sessions_end_with_their_lease_in_every_world(database: Database) -> None:
    desk, store = Desk(database, "a"), SqlSessionStore(database, 60.0)
    stays = desk.session()
    ended = [*over(database, "a", 3), *over(database, "b", 2)]
    assert (store.expire(), store.expire()) == (5, 0)
    assert [item.session_id for item in store.all(None)] == [stays]
    reasons = {item.session_id: item.end_reason for item in store.all(None, ended=True)}
    assert reasons == {stays: "", **dict.fromkeys(ended, LEASE_ENDED)}
    with pytest.raises(QmtlError, match="E_SESSION_LOST"):
        store.heartbeat(ended[0], SessionHeartbeat())
    with pytest.raises(QmtlError, match="E_SESSION_UNKNOWN"):
        store.end("nothing", "stopped", "ana")


def test_a_list_of_sessions_is_cut_after_it_was_filtered(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of all were read first: those of other worlds, and ended ones, hid what runs."""
    monkeypatch.setattr("activities.sessions.sql._LISTED", 2)
    desk, store = Desk(database, "a"), SqlSessionStore(database, 60.0)
    runs = desk.session()
    Desk(database, "b")
    for world in ("a", "b"):
        over(database, world, 3)
    assert store.expire() == 6
    for found in (store.all("a"), store.all(None), store.of_worlds(["a", "b"])):
        assert [item.session_id for item in found] == [runs]
    assert len(store.all("a", ended=True)) == 2


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_sessions_of_a_world_whose_fence_is_never_free_are_ended(database: Database) -> None:
    """Orders followed on orders, and the end of sessions only tried: ten seconds and more it never came."""
    desk, stop = Desk(database, "a"), threading.Event()
    over(database, "a")

    def hold() -> None:
        while not stop.is_set():
            with database.write("test", bookkeeping=True) as tx:
                locked_fence(tx, desk.world)
                time.sleep(0.02)

    with ThreadPoolExecutor(2) as pool:
        holding = [pool.submit(hold) for _ in range(2)]
        try:
            store = SqlSessionStore(database, 60.0)
            wait_for(lambda: store.expire() == 1, "the end of the session", 10)
        finally:
            stop.set()
        for thread in holding:
            thread.result(LIMIT_S)


def test_a_world_whose_sessions_cannot_be_ended_stops_no_other(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    Desk(database, "a")
    store = SqlSessionStore(database, 60.0)
    (bad,), (good,) = over(database, "a"), over(database, "b")
    real = store._end

    def failing(tx: Transaction, row: SessionRow, reason: str) -> RecordedChange:
        if row.world_id == "a":
            raise ZeroDivisionError("a row that cannot be read")
        return real(tx, row, reason)

    monkeypatch.setattr(store, "_end", failing)
    with pytest.raises(ZeroDivisionError):
        store.expire()
    assert {item.session_id for item in store.all(None)} == {bad}
    assert good in {item.session_id for item in store.all(None, ended=True)}


@pytest.mark.parametrize(("left_s", "is_late"), [(-1.0, True), (0.5, True), (5.0, False)])
def test_a_heartbeat_at_the_end_of_its_lease_is_too_late(
    database: Database, left_s: float, is_late: bool
) -> None:
    """While it committed, an order was refused for a lease that nothing said had ended."""
    sessions = SqlSessionStore(database, lease_s=15)
    session_id = sessions.open(wanted("w"), "s", "dryrun", "olga").info.session_id
    with database.write("test", bookkeeping=True) as tx:
        tx.session.get_one(SessionRow, session_id).expires_at = utc_before(timedelta(seconds=-left_s))
    if is_late:
        with pytest.raises(QmtlError, match="E_SESSION_LOST"):
            sessions.heartbeat(session_id, SessionHeartbeat())
    else:
        assert sessions.heartbeat(session_id, SessionHeartbeat()).expires_at > datetime.now(UTC)


def test_the_next_search_is_due_when_the_first_lease_may_end(database: Database) -> None:
    """A lease that is opened after a search ends no sooner than a whole lease later."""
    store = SqlSessionStore(database, 60.0)
    assert store.next_expiry_s() == 60.0
    SqlSessionStore(database, 600.0).open(wanted("a"), "s", "dryrun", "ana")
    assert store.next_expiry_s() == 60.0
    SqlSessionStore(database, 20.0).open(wanted("a"), "s", "dryrun", "ana")
    assert 0 < store.next_expiry_s() <= 20.0
    over(database, "b")
    assert store.next_expiry_s() < 0
    store.expire()
    assert 0 < store.next_expiry_s() <= 20.0


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_world_that_is_held_delays_the_sessions_and_orders_of_no_other(database: Database) -> None:
    """One transaction took the fences of all worlds and then waited. SQLite has one writer."""
    desks = [Desk(database, world) for world in ("a", "b", "c")]
    desks[0].apply("dryrun")
    order = desks[0].order(desks[0].session(), desks[0].epoch)
    for desk in desks:
        over(database, desk.world)
    store = SqlSessionStore(database, 60.0)
    with ThreadPoolExecutor(3) as pool:
        with database.write("apply", bookkeeping=True) as tx:
            tx.lock("fence:b")
            assert pool.submit(store.expire).result(LIMIT_S) == 2
            published = pool.submit(OrderAcceptance(database).publish, [order], desks[0].caller)
            assert published.result(LIMIT_S)[0].accepted
            assert [item.world_id for item in store.all(None)] == ["b", "a"]
        assert store.expire() == 1


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_heartbeat_waits_for_no_fence(database: Database) -> None:
    """Who ended a session held its row while it waited for the fence."""
    desk, store, done = Desk(database, "a"), SqlSessionStore(database, 60.0), threading.Event()
    session = desk.session()
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        tx = stack.enter_context(database.write("apply", bookkeeping=True))
        tx.lock("fence:a")
        ends = pool.submit(store.end, session, "stopped", "ana")
        ends.add_done_callback(lambda _: done.set())
        waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
        limit = time.monotonic() + LIMIT_S
        while not tx.connection.execute(waiting).scalar_one():
            assert time.monotonic() < limit, "it waits for the fence"
            time.sleep(0.01)
        beats = pool.submit(store.heartbeat, session, SessionHeartbeat())
        assert beats.result(LIMIT_S).ended_at is None
        assert not done.is_set()
        stack.close()
        assert ends.result(LIMIT_S).end_reason == "stopped"
