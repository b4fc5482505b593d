"""A halt of all worlds: none that cannot be halted stops or delays another, and each of these is named."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event, text

from activities.fence.acceptance import OrderAcceptance
from activities.fence.halt_all import _halt_group, halt_all
from activities.fence.store import SqlFenceStore
from activities.storage.database import Database
from activities.storage.tables import ActivationRow, FenceRow
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import WorldSpec
from tests.support.desk import Desk
from tests.support.machine import wait_for
from tests.support.trail import audit_trail

WORLDS = [f"w{number:03}" for number in range(200)]


def halted(database: Database) -> dict[str, bool]:
    store = SqlFenceStore(database)
    return {name: bool(store.status(name).halted) for name in store.world_ids()}


@contextmanager
def counted_commits() -> Iterator[list[int]]:
    """The commits of the block, as the length of the list."""
    commits: list[int] = []

    def add(_: object) -> None:
        commits.append(1)

    event.listen(Engine, "commit", add)
    try:
        yield commits
    finally:
        event.remove(Engine, "commit", add)


def test_two_hundred_worlds_are_halted_in_one_transaction(database: Database) -> None:
    """Each in a transaction of its own took seconds, of which the last world waited for all."""
    store = SqlFenceStore(database)
    for name in WORLDS:
        store.create(WorldSpec(world=name), None, "olga")
    store.halt(WORLDS[7], "ana", "before")
    with counted_commits() as commits:
        halt_all(database, WORLDS, "olga", "all of them")
    assert len(commits) == 1
    assert halted(database) == dict.fromkeys(WORLDS, True)
    assert store.status(WORLDS[7]).halted == "ana: before", "the first halt stands"
    for name in WORLDS[::20]:
        (newest,) = audit_trail(database).page(name, 1, 10, verify=True).entries
        assert (newest.action, newest.actor, newest.after) == (
            "world.halted",
            "olga",
            {"halted": "olga: all of them", "epoch": 2, "cancelled": 0, "requested": 0},
        )


def test_one_world_that_cannot_be_halted_stops_no_other(database: Database) -> None:
    desks = {name: Desk(database, name) for name in ("a", "b", "c", "d")}
    desks["d"].apply("dryrun")
    with database.write("test", bookkeeping=True) as tx:
        tx.session.delete(tx.session.get_one(FenceRow, "a"))
        activation = tx.session.get_one(ActivationRow, ("b", "strategy:b0"))
        activation.body = "not JSON"
    with pytest.raises(QmtlError, match=r"2 of 4 worlds could not be halted: a, b; .*E_HALT_INCOMPLETE"):
        halt_all(database, list(desks), "olga", "all of them")
    assert halted(database) == {"b": False, "c": True, "d": True}
    order = desks["d"].order(desks["d"].session(), desks["d"].epoch)
    assert OrderAcceptance(database).publish([order], desks["d"].caller)[0].reason is Refusal.HALTED


def test_one_world_whose_rows_cannot_be_written_stops_no_other(database: Database) -> None:
    """Here the whole transaction fails, not only what is read of one world."""
    for name in WORLDS[:9]:
        SqlFenceStore(database).create(WorldSpec(world=name), None, "olga")
    with database.write("test", bookkeeping=True) as tx:
        fence = tx.session.get_one(FenceRow, WORLDS[3])
        fence.activation_sequence = 2**31 - 1 if "postgres" in type(database).__module__ else 2**63 - 1
    with pytest.raises(QmtlError, match=rf"1 of 9 worlds could not be halted: {WORLDS[3]}; "):
        halt_all(database, WORLDS[:9], "olga", "")
    assert halted(database) == {name: name != WORLDS[3] for name in WORLDS[:9]}


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
@pytest.mark.parametrize("held", ["fence", "row"])
def test_a_world_that_is_held_delays_no_other(database: Database, held: str) -> None:
    """The wait had no end. SQLite has one writer, and no world that is held alone."""
    names = WORLDS[:20]
    for name in names:
        SqlFenceStore(database).create(WorldSpec(world=name), None, "olga")
    with database.write("test", bookkeeping=True) as tx:
        if held == "fence":
            tx.lock(f"fence:{names[0]}")
        else:
            tx.session.connection().execute(
                text("SELECT * FROM fence WHERE world_id = :name FOR UPDATE"), {"name": names[0]}
            )
        began = time.monotonic()
        with pytest.raises(QmtlError, match=rf"1 of 20 worlds could not be halted: {names[0]}; .*lock"):
            halt_all(database, names, "olga", "")
        assert time.monotonic() - began < 10, "a limit against hanging, not a measurement"
        assert halted(database) == {name: name != names[0] for name in names}
    halt_all(database, names, "olga", "")
    assert halted(database) == dict.fromkeys(names, True)


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_many_held_worlds_delay_none_that_is_nearly_free(database: Database) -> None:
    """Each of them was waited for before the next one was tried."""
    names = WORLDS[:41]
    for name in names:
        SqlFenceStore(database).create(WorldSpec(world=name), None, "olga")
    with ThreadPoolExecutor(1) as threads, database.write("test", bookkeeping=True) as held:
        with database.write("test", bookkeeping=True) as busy:
            for name in names:
                (busy if name == names[-1] else held).lock(f"fence:{name}")
            tried = threading.Event()
            event.listen(database._engine, "handle_error", lambda _: tried.set())
            halting = threads.submit(halt_all, database, names, "olga", "", 30.0)
            assert tried.wait(30), "no fence was tried"
        began = time.monotonic()
        wait_for(lambda: SqlFenceStore(database).status(names[-1]).halted, "the halt", 30)
        assert time.monotonic() - began < 2, "a limit against waiting for the other forty, not a measurement"
        held.connection.commit()
        halting.result(30)
    assert all(halted(database).values())


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_two_halts_of_all_worlds_at_once_both_succeed(database: Database) -> None:
    """The second one found every fence held, and called its worlds not halted."""
    names = WORLDS[:50]
    for name in names:
        SqlFenceStore(database).create(WorldSpec(world=name), None, "olga")
    locked, over = threading.Event(), threading.Event()

    def first() -> None:
        with database.write("ana") as tx:
            _halt_group(tx, names, "ana: first")
            locked.set()
            over.wait(10)

    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(first)
        assert locked.wait(10)
        second = threads.submit(halt_all, database, names, "olga", "second", 10.0)
        time.sleep(0.3)  # it has found every fence held by now
        over.set()
        slow.result(10)
        second.result(10)
    assert {SqlFenceStore(database).status(name).halted for name in names} == {"ana: first"}
