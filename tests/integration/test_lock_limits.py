"""On PostgreSQL each wait for a lock has a limit, and a transaction that hangs does not keep its locks."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.applies import steps
from activities.fence.flattens import SqlFlattens
from activities.fence.order_log import SqlOrderLog
from activities.fence.postgres_statements import PostgresStatements
from activities.fence.state import locked_fence
from activities.fence.store import SqlFenceStore
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.sessions.sql import SqlSessionStore
from activities.storage import postgres
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.orders import CancelRequest
from tests.support.desk import Desk
from tests.support.flatten_floor import wanted

pytestmark = pytest.mark.parametrize("dsn", ["postgres"], indirect=True)


def refused(desk: Desk, holder: Database, acts: dict[str, Callable[[], object]]) -> None:
    """Another transaction holds the fence: each of the acts gives up in time, and says why."""
    with holder.write("test", bookkeeping=True) as tx, ThreadPoolExecutor(len(acts)) as pool:
        locked_fence(tx, desk.world)
        for name, act in {name: pool.submit(act) for name, act in acts.items()}.items():
            error = act.exception(10)
            assert isinstance(error, QmtlError), name
            assert error.code == "E_UNAVAILABLE", name
            assert "another transaction holds a lock" in error.message, name


def test_halts_and_steps_of_an_apply_wait_for_a_held_fence_as_long_as_they_say(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 60.0)
    monkeypatch.setattr(steps, "_LOCK_WAIT_S", 0.2)
    patient = open_database(dsn)
    try:
        desk = Desk(database)
        run, strategy, halts = desk.request("dryrun"), desk.strategies[0], SqlStrategyHalts(patient)
        flattens = SqlFlattens(patient, DEFAULT_ACCOUNTS, 20.0)
        desk.approve(run)
        acts: dict[str, Callable[[], object]] = {
            "halt": lambda: SqlFenceStore(patient).halt(desk.world, "olga", "stop", 0.2),
            "halt of a strategy": lambda: halts.halt(desk.world, strategy, "olga", "stop", 0.2),
            "flatten": lambda: flattens.request(desk.world, wanted(), "olga", 0.2),
            "freeze": lambda: steps.SqlApplySteps(patient).freeze(desk.world, run),
        }
        refused(desk, database, acts)
        assert desk.fence.halt(desk.world, "olga", "stop")
    finally:
        patient.close()


def test_everything_else_waits_for_a_held_fence_no_longer_than_its_connection_says(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOCK_WAIT_S", 0.4)
    hasty = open_database(dsn)
    try:
        desk = Desk(database)
        session = desk.session()
        acts: dict[str, Callable[[], object]] = {
            "cancel": lambda: SqlOrderLog(hasty).cancel(desk.world, CancelRequest(all=True), "olga"),
            "end of a session": lambda: SqlSessionStore(hasty, 60.0).end(session, "stopped", "ana"),
        }
        refused(desk, database, acts)
    finally:
        hasty.close()


def test_a_request_and_the_end_of_an_apply_wait_for_no_order(database: Database) -> None:
    """Orders waited for both: each held the fence for as long as it took, and changed nothing of it."""
    desk = Desk(database)
    first = desk.request("dryrun")
    with database.write("test", bookkeeping=True) as tx:
        locked_fence(tx, desk.world)
        desk.steps.conclude(desk.world, first, "rolled_back", "")
        second = desk.request("dryrun")
    assert desk.freeze(second)


def test_orders_that_waited_for_a_fence_keep_the_limit_for_what_follows(database: Database) -> None:
    desk = Desk(database)
    order = desk.order("0" * 32, desk.epoch)
    with database.write("test", bookkeeping=True) as tx:
        PostgresStatements().read(tx.connection, [order], set(), wait=True)
        limit = tx.connection.exec_driver_sql("SHOW lock_timeout").scalar_one()
    assert limit == "10s"


def test_a_transaction_that_does_nothing_loses_its_locks(
    dsn: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that hangs, or whose host is dead, while it holds a fence."""
    desk = Desk(database)
    monkeypatch.setattr(postgres, "_IDLE_TRANSACTION_S", 0.5)
    hanging, halted = open_database(dsn), False
    try:
        with pytest.raises(QmtlError, match="E_UNAVAILABLE"), hanging.write("x", bookkeeping=True) as tx:
            locked_fence(tx, desk.world)
            halted = desk.fence.halt(desk.world, "olga", "stop", 20.0)
    finally:
        hanging.close()
    assert halted


def test_a_process_starts_while_another_one_holds_the_lock_of_migrations(
    dsn: str, database: Database
) -> None:
    """Else a halt in the store would wait for whatever hangs there."""
    with database.migrating(), ThreadPoolExecutor(1) as pool:
        pool.submit(open_database, dsn).result(20).close()
