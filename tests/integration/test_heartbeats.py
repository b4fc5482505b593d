"""Heartbeats of processes that work, stand by, hang, fail, stop and are killed."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from activities.storage import heartbeats
from activities.storage.database import Database
from activities.storage.elected import run_elected
from activities.storage.heartbeats import HeartbeatWriter, count_working, processes
from qmtl_sdk.contracts.processes import ProcessStatus
from tests.support import ROOT
from tests.support.machine import wait_for

PROCESS = """
import sys, threading
from activities.storage.elected import run_elected
from activities.storage.opening import open_database
run_elected(open_database(sys.argv[1]), "router", lambda: 0.1, threading.Event())
"""


@contextmanager
def elected(database: Database, turn: Callable[[], float]) -> Iterator[None]:
    """A router in this process."""
    stop = threading.Event()
    thread = threading.Thread(target=run_elected, args=(database, "router", turn, stop))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def started(dsn: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A router in a process of its own, which may be killed."""
    process = subprocess.Popen([sys.executable, "-c", PROCESS, dsn], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def found(database: Database, state: str) -> list[ProcessStatus]:
    return [item for item in processes(database) if item.state == state]


def test_a_killed_process_is_dead_until_another_of_its_name_works(
    database: Database, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "SEEN_WITHIN_S", 3.0)
    with started(dsn) as first:
        wait_for(lambda: count_working(processes(database), "router") == 1, "router")
        with started(dsn) as second:
            (waiting,) = wait_for(lambda: found(database, "standing by"), "standby")
            assert waiting.pid == second.pid
            assert count_working(processes(database), "router") == 1, "a standby does no work"
            second.kill()
            second.wait()
            (dead,) = wait_for(lambda: found(database, "dead"), "dead standby")
            assert dead.pid == second.pid
        first.kill()
        first.wait()
        wait_for(lambda: {first.pid} <= {item.pid for item in found(database, "dead")}, "dead router")
        assert count_working(processes(database), "router") == 0
    with elected(database, lambda: 0.1):
        wait_for(lambda: [item.state for item in processes(database)] == ["running"], "replacement")


def test_a_standby_takes_over(database: Database, dsn: str) -> None:
    with started(dsn) as first:
        wait_for(lambda: found(database, "running"), "router")
        with elected(database, lambda: 0.1):
            wait_for(lambda: found(database, "standing by"), "standby")
            first.kill()
            first.wait()
            wait_for(lambda: [item.pid for item in found(database, "running")] != [first.pid], "takeover")


def test_a_process_that_hangs_does_not_pass_for_alive(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(heartbeats, "WORKED_WITHIN_S", 0.5)
    hangs, goes_on = threading.Event(), threading.Event()

    def turn() -> float:
        if hangs.is_set():
            goes_on.wait(60)
        return 0.01

    with elected(database, turn):
        wait_for(lambda: count_working(processes(database), "router") == 1, "router")
        hangs.set()
        (hanging,) = wait_for(lambda: found(database, "not answering"), "router that hangs")
        assert hanging.seen_s is not None
        assert hanging.seen_s < 0.5, "its heartbeats go on"
        goes_on.set()
        wait_for(lambda: count_working(processes(database), "router") == 1, "router again")


def test_the_fault_of_a_failing_turn_is_shown_until_one_succeeds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(heartbeats, "WORKED_WITHIN_S", 0.3)
    monkeypatch.setattr("activities.storage.elected._RETRY_S", 0.01)
    fails = threading.Event()

    def turn() -> float:
        if fails.is_set():
            raise ZeroDivisionError("of\x00a\nbroker" + "x" * 1000)
        return 0.01

    with elected(database, turn):
        wait_for(lambda: count_working(processes(database), "router") == 1, "router")
        fails.set()
        (failing,) = wait_for(lambda: found(database, "not answering"), "router that fails")
        assert failing.fault.startswith("ZeroDivisionError: of a broker")
        assert len(failing.fault) == 200
        fails.clear()
        wait_for(lambda: [item.fault for item in found(database, "running")] == [""], "router again")


def test_a_process_that_ends_normally_is_not_listed(database: Database) -> None:
    with HeartbeatWriter(database, "worker") as heartbeat:
        heartbeat.worked()
        wait_for(lambda: found(database, "running"), "worker")
    assert processes(database) == []


def test_a_heartbeat_that_cannot_be_written_is_not_the_last(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 0.05)
    write, failed = type(database).write, threading.Event()

    def failing(self: Database, actor: str, *, bookkeeping: bool = False):  # type: ignore[no-untyped-def]
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError
        return write(self, actor, bookkeeping=bookkeeping)

    monkeypatch.setattr(type(database), "write", failing)
    with HeartbeatWriter(database, "worker") as heartbeat:
        heartbeat.worked()
        wait_for(lambda: found(database, "running"), "worker")
    assert failed.is_set()


def test_rows_of_dead_processes_are_deleted_after_a_while(
    database: Database, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeats, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(heartbeats, "SEEN_WITHIN_S", 0.5)
    with started(dsn) as process:
        wait_for(lambda: processes(database), "router")
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: found(database, "dead"), "dead router")
    monkeypatch.setattr(heartbeats, "_KEEP_S", 1.0)
    monkeypatch.setattr(heartbeats, "_CLEAN_EVERY_S", 0.1)
    with HeartbeatWriter(database, "worker"):
        wait_for(lambda: [item.name for item in processes(database)] == ["worker"], "deletion")
