"""The supervisor of the embedded stack starts again what dies, and nothing else."""

import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from activities.settings import Settings
from api.parts import StackParts, part_of
from api.supervisor import Restarts, Supervisor
from qmtl_sdk.runtime.embedded import ProcessRecord, StackRecord
from temporal.server import stop_process
from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import wait_for
from tests.support.stuck_writer import writer

# The parts of a stack outlive the objects that started them.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")

BACK_S = 15.0
"""Seconds in which a process must be back; it takes less than one where the machine is idle."""


class Bench:
    """A stack of parts that need a database alone, under a supervisor of its own."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.parts = StackParts(Settings(home=home))
        self.pids: list[ProcessRecord] = []
        with self.parts.lock():
            stack = StackRecord()
            for name in ("relay", "router"):
                stack = self.parts.start(name, stack)
        for name in ("relay", "router"):
            wait_for(lambda name=name: self.starts(name) == 1, f"{name}")  # type: ignore[misc]

    def supervise(self) -> None:
        with self.parts.lock():
            self.parts.start("supervisor", self.parts.read())

    def starts(self, name: str) -> int:
        """How often a part became ready."""
        return self.parts.log(name).read_text().count(f"{name}: ready")

    def part(self, name: str) -> ProcessRecord:
        found: ProcessRecord = getattr(self.parts.read(), name)
        self.pids.append(found)
        return found

    def kill(self, name: str) -> ProcessRecord:
        found = self.part(name)
        os.kill(found.pid, signal.SIGKILL)
        return found

    def back(self, name: str, before: ProcessRecord) -> Callable[[], bool]:
        return lambda: (now := self.part(name)) != before and now.alive

    def log(self) -> str:
        return self.parts.log("supervisor").read_text()

    def close(self) -> None:
        found = [*self.pids, *self.parts.read().processes().values()]
        for part in sorted(found, key=lambda part: part != self.parts.read().supervisor):
            stop_process(part.pid, part.created)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    found = Bench(tmp_path / "home")
    try:
        yield found
    finally:
        found.close()


def test_each_of_two_parts_that_die_is_started_once(bench: Bench) -> None:
    bench.supervise()
    relay, router = bench.kill("relay"), bench.kill("router")
    wait_for(bench.back("relay", relay), "relay", BACK_S)
    wait_for(bench.back("router", router), "router", BACK_S)
    for name in ("relay", "router"):
        wait_for(lambda name=name: bench.starts(name) == 2, name)  # type: ignore[misc]
    assert bench.log().count("had died; started it") == 2
    assert bench.parts.read().faults == {}


def test_a_part_that_cannot_start_is_named_and_does_not_keep_the_machine_busy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMTL_ORDERS__LIVE_BROKER", "nonsense")
    bench.supervise()
    bench.kill("router")
    wait_for(lambda: "router" in bench.parts.read().faults, "name of the router", 60)
    assert "there is no broker 'nonsense'" in bench.parts.read().faults["router"]
    assert bench.log().count("the router had died") <= 6
    assert bench.part("relay").alive


def test_pauses_grow_and_a_good_start_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("api.supervisor.time.time", lambda: now)
    restarts, pauses = Restarts(), list[float]()
    for pid in range(8):
        part = ProcessRecord(pid=pid, created=now)
        died = now
        while not restarts.is_due(part, now):
            now += 0.25
        pauses.append(now - died)
        restarts.add(now)
        assert not restarts.is_due(part, now), "a start that failed is not repeated at once"
    assert pauses == [0, 1, 2, 3, 4, 5, 60, 60]
    part = ProcessRecord(pid=9, created=now)
    now += 10
    assert restarts.is_due(part, now)
    assert not restarts.named


def test_the_supervisor_leaves_the_stack_to_whoever_holds_its_lock(bench: Bench) -> None:
    bench.supervise()
    relay = bench.kill("relay")
    wait_for(bench.back("relay", relay), "relay", BACK_S)  # it looks now
    with bench.parts.lock():
        router = bench.kill("router")
        supervisor = psutil.Process(bench.part("supervisor").pid)
        looks = supervisor.num_ctx_switches().voluntary + 10
        wait_for(lambda: supervisor.num_ctx_switches().voluntary > looks, "looks of the supervisor")
        assert bench.part("router") == router
    wait_for(bench.back("router", router), "router", BACK_S)


def test_the_supervisor_ends_where_another_is_recorded_or_its_home_is_gone(bench: Bench) -> None:
    bench.supervise()
    first = bench.part("supervisor")
    bench.supervise()
    wait_for(lambda: not first.alive, "end of the first", BACK_S)
    second = bench.part("supervisor")
    assert second.alive
    bench.close = lambda: [stop_process(part.pid, part.created) for part in bench.pids]  # type: ignore[assignment,method-assign,func-returns-value]
    for name in ("relay", "router"):
        bench.part(name)
    shutil.rmtree(bench.parts.home)
    wait_for(lambda: not second.alive, "end of the second", BACK_S)


def test_a_stack_whose_processes_die_one_by_one_goes_on(newcomer: Person) -> None:
    person = newcomer
    parts = StackParts(Settings(home=person.folder / "home"))
    assert person.types("world", "create", str(ROOT / "examples" / "equities.yml")).returncode == 0
    seen = dict(parts.read().processes())
    assert set(seen) == {"temporal", "worker", "relay", "router", "gateway", "supervisor"}

    def part(name: str) -> ProcessRecord:
        found: ProcessRecord = getattr(parts.read(), name)
        return found

    for name in ("temporal", "worker", "relay", "router", "gateway"):
        before = part(name)
        os.kill(before.pid, signal.SIGKILL)
        wait_for(lambda: part(name) != before and part(name).alive, name, BACK_S)  # noqa: B023
        assert part(name).port == before.port, "clients and other parts know the address"
    wait_for(lambda: person.types("status").stdout.count("ok, 1 worker(s)") == 1, "health", 120)
    done = person.types("submit", str(ROOT / "examples" / "first_strategy.py"), "-w", "equities", "--no-run")
    assert done.returncode == 0, done.stderr
    for name in ("supervisor", "router"):
        os.kill(part(name).pid, signal.SIGKILL)
    wait_for(lambda: not part("router").alive, "death")
    healed = person.reads("up")
    assert all(ProcessRecord.model_validate(healed[name]).alive for name in seen)
    stopped = person.reads("down")["stopped"]
    assert stopped == ["supervisor", "gateway", "router", "relay", "worker", "temporal"]
    assert [name for name, found in parts.read().processes().items() if found.alive] == []
    assert processes_in(parts.home) == []


def processes_in(home: Path) -> list[int]:
    """Processes that work in the home of a stack, recorded or not."""
    found = []
    for process in psutil.process_iter(["pid", "cwd", "cmdline", "status"]):
        mine = process.info["cwd"] == str(home) or str(home) in " ".join(process.info["cmdline"] or ())
        if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


def test_a_home_of_another_commit_is_refused_with_one_line(newcomer: Person) -> None:
    """The command waited 90 s for a Gateway that could not answer."""
    from sqlalchemy import text

    from activities.storage.opening import open_database

    home = newcomer.folder / "home"
    database = open_database(f"sqlite:///{home / 'qmtl.db'}")
    with database.write("test", bookkeeping=True) as tx:
        tx.session.connection().execute(text("DROP TABLE strategy_halt"))
    database.close()
    done = newcomer.types("up")
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "the database was made by another commit of QMTL: it lacks strategy_halt." in done.stderr


def test_a_part_that_keeps_writers_out_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.supervisor._STOPPED_FOR_S", 0.5)
    monkeypatch.setattr("api.supervisor._WATCH_EVERY_S", 0.1)
    parts = StackParts(Settings(home=tmp_path))
    stuck = writer(tmp_path / "queues.db")
    with parts.lock():
        parts.write(StackRecord(supervisor=part_of(os.getpid())))
    supervisor = threading.Thread(target=Supervisor(parts).run)
    supervisor.start()
    try:
        assert stuck.wait(BACK_S) == -signal.SIGKILL
    finally:
        parts.write(StackRecord())
        supervisor.join(BACK_S)
        stuck.kill()
    assert not supervisor.is_alive()
