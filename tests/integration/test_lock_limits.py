"""On PostgreSQL each wait for a lock has a limit, and a transaction that hangs does not keep its locks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.fence import halts, store, strategy_halts
from activities.fence.order_log import SqlOrderLog
from activities.fence.state import locked_fence
from activities.storage import postgres
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.orders import CancelRequest
from tests.support.desk import Desk

pytestmark = pytest.mark.parametrize("dsn", ["postgres"], indirect=True)


@pytest.fixture
def desk(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Over a database whose waits are short."""
    monkeypatch.setattr(postgres, "_LOCK_WAIT_S", 0.4)
    for module in (halts, store, strategy_halts):
        monkeypatch.setattr(module, "HALT_WAIT_S", 0.2)
    database = open_database(dsn)
    try:
        yield Desk(database)
    finally:
        database.close()


def test_no_halt_cancel_or_other_change_waits_for_a_held_fence_without_a_limit(
    desk: Desk, database: Database
) -> None:
    desk.apply("dryrun")
    strategy = desk.strategies[0]
    acts = {
        "halt": lambda: desk.fence.halt(desk.world, "olga", "stop"),
        "halt of a strategy": lambda: strategy_halts.SqlStrategyHalts(desk.database).halt(
            desk.world, strategy, "olga", "stop"
        ),
        "cancel": lambda: SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga"),
        "end of a session": lambda: desk.sessions.end(desk.session(), "stopped", "ana"),
    }
    with database.write("test", bookkeeping=True) as tx, ThreadPoolExecutor(len(acts)) as pool:
        locked_fence(tx, desk.world)
        for name, act in {name: pool.submit(act) for name, act in acts.items()}.items():
            error = act.exception(10)
            assert isinstance(error, QmtlError), name
            assert (error.code, "another transaction holds a lock" in error.message) == (
                "E_UNAVAILABLE",
                True,
            )
    assert desk.fence.halt(desk.world, "olga", "stop")


def test_a_transaction_that_does_nothing_loses_its_locks(
    dsn: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that hangs, or whose host is dead, while it holds a fence."""
    monkeypatch.setattr(postgres, "_IDLE_TRANSACTION_S", 0.5)
    monkeypatch.setattr(store, "HALT_WAIT_S", 20.0)
    hanging, halted = open_database(dsn), False
    try:
        with pytest.raises(QmtlError, match="E_UNAVAILABLE"), hanging.write("x", bookkeeping=True) as tx:
            locked_fence(tx, desk.world)
            halted = desk.fence.halt(desk.world, "olga", "stop")
    finally:
        hanging.close()
    assert halted
