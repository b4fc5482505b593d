"""Processes without work wait for a commit instead of reading tables again and again."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from activities.storage.changes import Changes
from activities.storage.database import Database
from activities.storage.elected import run_elected
from activities.storage.log import NewEntry, SqliteLog
from tests.support.events import record_change

# Far longer than a wake-up takes.
LIMIT_S = 20.0


def quiet(changes: Changes) -> bool:
    """No change is seen most of the time. (PostgreSQL commits a little of its own, such as statistics.)"""
    return sum(changes.wait(0.02, threading.Event()) for _ in range(10)) < 3


def test_a_commit_of_any_thread_ends_the_wait_and_a_read_does_not(database: Database) -> None:
    stop = threading.Event()
    with database.changes() as changes:
        with database.read() as session:
            session.connection().exec_driver_sql("SELECT count(*) FROM outbox").scalar_one()
        assert quiet(changes)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(record_change, database, "a", 1, "w")
            assert changes.wait(LIMIT_S, stop)
            waiting.result()
        assert quiet(changes)
        record_change(database, "b", 1, "w")
        assert changes.wait(0.0, stop)
        stop.set()
        began = time.monotonic()
        assert not changes.wait(LIMIT_S, stop)
        assert time.monotonic() - began < LIMIT_S / 2


def test_an_elected_process_takes_a_turn_at_a_commit_and_none_without(database: Database) -> None:
    stop, taken = threading.Event(), threading.Semaphore(0)

    def turn() -> float:
        taken.release()
        return 3600.0

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_elected, database, "relay", turn, stop)
        try:
            assert taken.acquire(timeout=LIMIT_S)
            assert sum(taken.acquire(timeout=0.1) for _ in range(10)) < 3, "turns without a commit"
            record_change(database, "a", 1, "w")
            assert taken.acquire(timeout=LIMIT_S)
        finally:
            stop.set()
        running.result(LIMIT_S)


def test_following_a_log_waits_for_an_entry_and_ends_with_the_log(tmp_path: Path) -> None:
    log, writer = SqliteLog(tmp_path / "log.db"), SqliteLog(tmp_path / "log.db")
    with ThreadPoolExecutor(1) as pool:
        try:
            found = pool.submit(log.follow, 0, 10, LIMIT_S)
            assert log.follow(0, 10, 0.0) == ([], 0)
            writer.append([NewEntry("t", "1", "s", "{}")])
            entries, position = found.result(LIMIT_S)
            assert [(entry.topic, entry.sequence) for entry in entries] == [("t", 1)]
            unended = pool.submit(log.follow, position, 10, 3600.0)
        finally:
            log.close()
        assert unended.result(LIMIT_S) == ([], position)
    writer.close()
