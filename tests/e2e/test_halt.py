"""The kill switch and `qmtl status` of an embedded stack with dead or hanging processes."""

import getpass
import json
import os
import signal
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest

from qmtl_sdk.runtime.embedded import STACK_FILE
from tests.support import ROOT
from tests.support.command import Person
from tests.support.stuck_writer import writer

# Seconds in which a process that was killed has ended.
_SOON_S = 10.0


@pytest.fixture
def operator(newcomer: Person) -> Person:
    """A person with a stack that serves the world `equities`."""
    assert newcomer.types("world", "create", str(ROOT / "examples" / "equities.yml")).returncode == 0
    return newcomer


def kill(operator: Person, *names: str, with_signal: int = signal.SIGKILL) -> None:
    processes = operator.reads("status")["processes"]
    for name in names:
        os.kill(processes[name]["pid"], with_signal)


def halted(operator: Person) -> str:
    return str(operator.reads("world", "status", "equities")["fence"]["halted"])


def test_a_halt_takes_effect_whatever_processes_are_dead(operator: Person) -> None:
    """With any process dead, every command said that no Gateway runs."""
    for names in (
        ("supervisor", "temporal", "worker", "relay", "router"),
        ("supervisor", "gateway"),  # the supervisor first, which would start what is dead
    ):
        kill(operator, *names)
        status = operator.reads("status")
        dead = [name for name, part in status["processes"].items() if part["state"] == "dead"]
        assert sorted(dead) == sorted(names)
        done = operator.types("world", "status", "equities")
        assert ("fence      open" in done.stdout) is ("gateway" not in names), done.stderr
        which = "equities" if "gateway" in names else "--all"
        done = operator.types("world", "halt", which, "--reason", "+".join(names))
        assert done.returncode == 0, done.stderr
        assert ("straight into the store" in done.stdout) is ("gateway" in names)
        assert operator.types("up").returncode == 0
        assert halted(operator) == f"{getpass.getuser()}: {'+'.join(names)}"
        assert operator.types("world", "resume", "equities").returncode == 0
    entries = operator.reads("world", "audit", "equities", "--verify")["entries"]
    halts = [entry for entry in entries if entry["action"] == "world.halted"]
    assert {entry["actor"] for entry in halts} == {getpass.getuser()}
    assert len(halts) == 2


def test_one_strategy_is_halted_with_and_without_a_gateway(operator: Person) -> None:
    submitted = operator.types(
        "submit", str(ROOT / "examples" / "first_strategy.py"), "-w", "equities", "--no-run"
    )
    assert submitted.returncode == 0, submitted.stderr

    def strategy_halts() -> list[dict[str, str]]:
        found: list[dict[str, str]] = operator.reads("world", "status", "equities")["fence"]["strategy_halts"]
        return found

    def refused(*words: str) -> str:
        done = operator.types("world", *words)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        return done.stderr

    done = operator.types("world", "halt", "equities", "-s", "First", "--reason", "odd")
    assert done.stdout == "halted: First in equities\n", done.stderr
    assert (
        f"halted     First ({getpass.getuser()}: odd)" in operator.types("world", "status", "equities").stdout
    )
    assert "did you mean 'First'?" in refused("halt", "equities", "-s", "Frist")
    assert "resume one of its halted strategies with -s STRATEGY: First" in refused("resume", "equities")
    assert operator.types("world", "resume", "equities", "-s", "First").returncode == 0
    assert strategy_halts() == []
    kill(operator, "supervisor", "gateway")
    assert "did you mean 'First'?" in refused("halt", "equities", "-s", "Frist")
    done = operator.types("world", "halt", "equities", "-s", "First", "--reason", "no Gateway")
    assert "straight into the store" in done.stdout, done.stderr
    assert operator.types("up").returncode == 0
    (now,) = strategy_halts()
    assert (now["name"], now["reason"], now["halted_by"]) == ("First", "no Gateway", getpass.getuser())
    entries = operator.reads("world", "audit", "equities", "--verify")["entries"]
    trail = [(item["action"], item["actor"]) for item in entries if item["action"].startswith("strategy.")]
    me = getpass.getuser()
    assert trail == [("strategy.halted", me), ("strategy.resumed", me), ("strategy.halted", me)]


@pytest.mark.parametrize("keeps_writers_out", [False, True])
def test_a_gateway_that_hangs_does_not_delay_a_halt(operator: Person, keeps_writers_out: bool) -> None:
    """Also where a process hangs within a transaction: the halt ends it then, as it may the Gateway."""
    pid = operator.reads("status")["processes"]["gateway"]["pid"]
    kill(operator, "gateway", with_signal=signal.SIGSTOP)
    stuck = writer(operator.folder / "home" / "qmtl.db") if keeps_writers_out else None
    try:
        done = operator.types("world", "halt", "--all", "--reason", "it hangs")
        assert "halted: equities" in done.stdout, done.stderr
        assert "straight into the store" in done.stdout
        said = operator.types("status").stdout
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            assert "does not answer" in said or "can't be reached" in said
        if stuck is not None:
            assert stuck.wait(_SOON_S) == -signal.SIGKILL
            assert f"Process {stuck.pid} was stopped" in done.stdout
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        if stuck is not None:
            stuck.kill()
            stuck.wait(_SOON_S)
    assert halted(operator).endswith("it hangs")


FAULT = {"type": "x", "title": "x", "status": 500, "code": "E_INTERNAL", "detail": "it failed"}


def answering(status: int, kind: str, body: bytes) -> type[BaseHTTPRequestHandler]:
    """Make a server that answers every request with this."""

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Answering


# Answers that are not those of a working Gateway: their status, type and body.
ANSWERS = {
    "a fault": (500, "application/problem+json", json.dumps(FAULT).encode()),
    "a page to log in": (200, "text/html", b"<h1>Please log in</h1>"),
    "a redirection": (302, "text/html", b""),
    "other JSON": (200, "application/json", b"[1]"),
}


def test_an_answer_that_is_not_of_a_working_gateway_does_not_stop_a_halt(operator: Person) -> None:
    """All but the first ended in a traceback, and nothing was halted."""
    home = operator.folder / "home"
    for name, answer in ANSWERS.items():
        for words in (
            ("--reason", name),
            (f"--reason={name}",),
        ):  # sent before the command has loaded, and after
            with ThreadingHTTPServer(("127.0.0.1", 0), answering(*answer)) as server:
                thread = threading.Thread(target=server.serve_forever)
                thread.start()
                try:
                    other = Person(
                        operator.folder,
                        QMTL_HOME=str(home),
                        QMTL_GATEWAY__URL=f"http://127.0.0.1:{server.server_port}",
                        QMTL_GATEWAY__DATABASE_DSN=f"sqlite:///{home / 'qmtl.db'}",
                    )
                    done = other.types("world", "halt", "equities", *words)
                finally:
                    server.shutdown()
                    thread.join()
            assert done.returncode == 0, done.stderr
            assert "No Gateway carried out the halt; it was written straight" in done.stdout
            assert halted(operator).endswith(name)
            assert operator.types("world", "resume", "equities").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name a world or give --all, one of the two"),
        (("--all", "-s", "First"), "--all takes no strategy"),
        (("equities", "--all"), "name a world or give --all, one of the two"),
        (("equities", "--as", "ana"), "only a Gateway can check ana's token"),
        (("equities",), "there is no database"),
    ],
)
def test_a_halt_that_cannot_be_given_says_why(newcomer: Person, words: tuple[str, ...], said: str) -> None:
    done = newcomer.types("world", "halt", *words)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())


def test_up_fails_where_a_process_cannot_start_beside_a_running_gateway(operator: Person) -> None:
    """`up` was done at the Gateway's first answer, with the router dead."""
    kill(operator, "supervisor", "router")
    mistaken = Person(
        operator.folder,
        QMTL_HOME=str(operator.folder / "home"),
        QMTL_ORDERS__LIVE_BROKER="nonsense",
    )
    done = mistaken.types("up")
    assert done.returncode != 0
    assert "the router ended while it started" in done.stderr
    assert "nonsense" in done.stderr
    assert operator.types("up").returncode == 0


def test_a_stack_file_of_a_newer_version_hides_no_process(operator: Person) -> None:
    """A key that this version does not know made the file unreadable, and `down` stopped nothing."""
    file = operator.folder / "home" / STACK_FILE
    aside = file.with_name("aside.json")  # the supervisor reads the file, and ends where it is empty
    aside.write_text(file.read_text().replace("{", '{"ledger": {"pid": 1},', 1))
    os.replace(aside, file)
    stopped = ["supervisor", "gateway", "router", "relay", "worker", "temporal"]
    assert operator.reads("down")["stopped"] == stopped
