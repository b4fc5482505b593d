"""A process that is stopped and keeps the writers of a SQLite file out is ended; nothing else is."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from activities.settings import Settings
from activities.storage.turnstile import WriterTurnstile, WriterWatch, watched_files
from api.cli.halt_in_store import halt_in_store
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.machine import wait_for
from tests.support.stuck_writer import STOPS, WAITS, has_lock, started, waits, writer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who has a lock")

# Seconds for which a holder may be stopped here.
_AFTER_S = 0.3

# Seconds in which what is right happens.
_LIMIT_S = 20.0

Process = subprocess.Popen[bytes]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    """Those that a test starts; it ends them."""
    found: list[Process] = []
    yield found
    for process in found:
        process.kill()
        process.wait(_LIMIT_S)


def takes_it(path: Path) -> bool:
    """Whether a writer gets through now."""
    done = threading.Event()

    def write() -> None:
        with closing(WriterTurnstile(path)) as turnstile, turnstile:
            done.set()

    threading.Thread(target=write, daemon=True).start()
    return done.wait(_LIMIT_S)


def ended(watch: WriterWatch) -> tuple[int, ...]:
    """The pids of the processes that the watch ends first."""
    return wait_for(watch.look, "a process to be ended", _LIMIT_S)


def ends_nothing(watch: WriterWatch) -> bool:
    until = time.monotonic() + 4 * _AFTER_S
    return not any(iter(lambda: watch.look() if time.monotonic() < until else None, None))


def test_a_process_that_is_stopped_with_the_writer_is_ended(file: Path, processes: list[Process]) -> None:
    processes.append(writer(file))
    began = time.monotonic()
    assert ended(WriterWatch(file, _AFTER_S)) == (processes[0].pid,)
    assert time.monotonic() - began >= _AFTER_S
    assert processes[0].wait(_LIMIT_S) == -signal.SIGKILL
    assert takes_it(file)


def test_a_process_that_is_stopped_before_the_writer_is_ended(file: Path, processes: list[Process]) -> None:
    with closing(WriterTurnstile(file)) as turnstile, turnstile:
        processes.append(started(file, STOPS))
        wait_for(lambda: has_lock(file, ".next", processes[0].pid), "a process that waits")
        os.kill(processes[0].pid, signal.SIGSTOP)
    assert ended(WriterWatch(file, _AFTER_S)) == (processes[0].pid,)
    assert takes_it(file)


@pytest.mark.parametrize("then", [WAITS, "while True: pass"])
def test_a_writer_that_waits_or_works_for_long_is_not_ended(
    file: Path, processes: list[Process], then: str
) -> None:
    """It may wait for SQLite's own lock, or book a ledger anew."""
    processes.append(writer(file, then))
    watch = WriterWatch(file, _AFTER_S)
    assert ends_nothing(watch)
    assert processes[0].poll() is None
    assert [process.pid for process in watch.holders()] == [processes[0].pid]
    os.kill(processes[0].pid, signal.SIGSTOP)
    assert ended(watch) == (processes[0].pid,)


def test_a_writer_that_is_stopped_and_continued_again_and_again_is_not_ended(
    file: Path, processes: list[Process]
) -> None:
    """As a tool does that limits how much of a core a process takes: it was stopped at each look."""
    processes.append(writer(file, "while True: pass"))
    watch, until = WriterWatch(file, _AFTER_S), time.monotonic() + 4 * _AFTER_S
    process = psutil.Process(processes[0].pid)
    while time.monotonic() < until:
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED, "a process that is stopped")
        assert watch.look() == ()
        process.resume()
        wait_for(lambda: process.status() == psutil.STATUS_RUNNING, "a process that works")
    process.suspend()
    assert ended(watch) == (process.pid,)


def test_a_stopped_process_that_has_no_lock_is_left_alone(file: Path, processes: list[Process]) -> None:
    processes.append(writer(file, WAITS))
    processes.append(started(file, STOPS))
    wait_for(lambda: has_lock(file, ".next", processes[1].pid), "a process that waits")
    processes.append(started(file, STOPS))
    wait_for(lambda: waits(processes[2].pid), "another that waits")
    os.kill(processes[2].pid, signal.SIGSTOP)
    assert ends_nothing(WriterWatch(file, _AFTER_S))
    assert [process.poll() for process in processes] == [None] * 3


def test_a_queue_is_found_by_its_files(file: Path) -> None:
    assert WriterWatch(file, 0.0).look() == (), "there is none"
    WriterTurnstile(file).close()
    assert watched_files(file.parent) == [file]
    assert WriterWatch(file, 0.0).look() == (), "nobody writes"


def test_a_halt_that_gets_no_writer_says_who_has_it(
    tmp_path: Path, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited without a limit."""
    file = tmp_path / "qmtl.db"
    file.touch()
    monkeypatch.setattr("api.cli.halt_in_store.settings", lambda: Settings(home=tmp_path))
    processes.append(writer(file, WAITS))
    with pytest.raises(QmtlError, match=rf"keeps all writers out of {file} \(pid: {processes[0].pid}\)"):
        halt_in_store("equities", None, None, "", 0.5)
    assert processes[0].poll() is None
