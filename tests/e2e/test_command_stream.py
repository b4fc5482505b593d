"""`qmtl token`, `qmtl world sessions | watch`, `qmtl submit` that keeps running, and `/metrics`."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from qmtl_sdk import Runner
from qmtl_sdk.contracts.access import Role
from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario
from tests.support.strategies import Trend
from tests.support.twofold import of_one_gateway
from tests.support.worlds import PAPER, WORLD


@pytest.fixture
def person(tmp_path: Path, machine: Machine) -> Person:
    return Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))


@pytest.fixture
def paper(machine: Machine, request: pytest.FixtureRequest) -> Iterator[str]:
    """A world in which a passing strategy runs at once."""
    name = "w" + "".join(c for c in request.node.name.lower() if c.isalnum())[-50:]
    with machine.client() as client:
        client.create_world(
            {
                **WORLD,
                "world": name,
                "clock": {"replay": {"start": "2017-06-30T00:00:00Z", "speed": 3 * 86_400.0}},
            },
            PAPER,
        )
    yield name
    Runner.shutdown()


def test_a_token_is_made_used_listed_and_taken_back(person: Person, machine: Machine) -> None:
    assert "registered: alice" in person.types("principal", "add", "alice").stdout
    made = person.reads(
        "token", "create", "alice", "--role", "author", "--world", "equities", "--expires", "12h"
    )
    assert made["info"]["grants"] == {"equities": "author"}
    alice = Person(
        person.folder,
        QMTL_GATEWAY__URL=machine.url,
        QMTL_GATEWAY__TOKEN=made["token"],
        QMTL_HOME=str(person.folder / "nobody"),
    )
    assert [world["spec"]["world"] for world in alice.reads("world", "list")] == ["equities"]
    refused = alice.types("world", "decide", "equities")
    assert (refused.returncode, "needs the role operator" in refused.stderr) == (1, True)
    listed = person.types("token", "list").stdout
    assert made["info"]["token_id"] in listed
    assert "author in equities" in listed
    assert person.types("token", "revoke", made["info"]["token_id"]).stdout.startswith("revoked: alice")
    refused = alice.types("world", "list")
    assert (refused.returncode, "has been revoked" in refused.stderr) == (1, True)
    assert "revoked" in person.types("token", "list").stdout
    assert person.types("principal", "disable", "alice").stdout.startswith("disabled: alice")
    again = person.types("token", "create", "alice")
    assert (again.returncode, "alice was disabled by" in again.stderr) == (1, True)
    assert "disabled by" in person.types("principal", "list").stdout
    assert "a new key signs" in person.types("token", "rotate", "--overlap", "30d").stdout
    assert person.types("world", "list").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("token", "create", "bob", "--role", "king"), "king"),
        (("token", "create", "bob"), "an owner registers it: qmtl principal add bob"),
        (("principal", "add", "Relay"), "a name under which QMTL itself acts"),
        (("principal", "add", "bob bobson"), "name"),
        (("principal", "disable", "nobody"), "nobody is not registered"),
        (("token", "create", "bob bobson"), "subject"),
        (("token", "create", "bob", "--expires", "soon"), "is not a duration"),
        (("token", "create", "bob", "--expires", "9000d"), "expires_in_s"),
        (("token", "revoke", "nothing"), "there is no token"),
        (("world", "watch", "equitys"), "did you mean 'equities'"),
        (("world", "watch", "equities", "--topic", "activations"), "did you mean 'activation'"),
        (("world", "sessions", "nowhere"), "there is no world"),
    ],
)
def test_a_mistake_gets_one_clear_line(person: Person, words: tuple[str, ...], said: str) -> None:
    done = person.types(*words)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def test_without_a_token_the_message_says_what_to_do(tmp_path: Path, machine: Machine) -> None:
    stranger = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(tmp_path / "nobody"))
    done = stranger.types("world", "list")
    assert (done.returncode, "carries no bearer token" in done.stderr) == (1, True)


def command(
    machine: Machine, *words: str, stderr: IO[str] | int = subprocess.PIPE, **variables: str
) -> "subprocess.Popen[str]":
    env = {
        **os.environ,
        "QMTL_GATEWAY__URL": machine.url,
        "QMTL_HOME": str(machine.home),
        "PYTHONPATH": str(ROOT),
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "api.cli", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )


def test_a_strategy_runs_until_ctrl_c_and_its_session_is_shown(
    person: Person, machine: Machine, paper: str
) -> None:
    assert person.types("world", "sessions", paper).stdout.strip() == "nothing runs"
    running = command(
        machine, "submit", f"{ROOT / 'tests' / 'support' / 'strategies.py'}:Trend", "--world", paper
    )
    wait_for(
        lambda: any(item["report"]["gate"] == "open" for item in person.reads("world", "sessions", paper)),
        "session",
    )
    shown = person.types("world", "sessions", paper).stdout
    assert all(word in shown for word in ("Trend", "dryrun", "gate open"))
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 0, said
    assert "Trend runs in dryrun" in said
    assert "Stopped: the session has ended." in said
    assert person.types("world", "sessions", paper).stdout.strip() == "nothing runs"
    assert "stopped by its author" in person.types("world", "sessions", paper, "--ended").stdout


def test_a_halt_is_shown_of_a_session_that_has_not_received_it(
    person: Person, machine: Machine, paper: str
) -> None:
    """With the relay dead, sessions said "gate open" after a halt, and the fence refused 21 orders."""
    with Runner.session(Trend(), world=paper, config=machine.config):
        wait_for(
            lambda: any(
                item["report"]["gate"] == "open" for item in person.reads("world", "sessions", paper)
            ),
            "open gate",
        )
        machine.kill("relay")
        try:
            assert person.types("world", "halt", paper, "--reason", "a test").returncode == 0
            shown = " ".join(person.types("world", "sessions", paper).stdout.split())
            assert "halted" in shown, shown
            assert person.reads("world", "sessions", paper)[0]["report"]["gate"] == "open"
        finally:
            machine.start_relay()


def test_the_terminal_names_the_new_stage_and_sigterm_ends_the_session(
    person: Person, machine: Machine
) -> None:
    """The terminal said dryrun while the strategy traded live; SIGTERM left the session until its lease."""
    stage = ApplyScenario(machine, "shown_stage")
    strategy = f"{ROOT / 'tests' / 'support' / 'strategies.py'}:Trend"
    with (person.folder / "said").open("w") as said:
        try:
            assert stage.promote("dryrun", stage.ana).outcome == "completed"
            running = command(machine, "submit", strategy, "--world", stage.world, stderr=said)
            read = (person.folder / "said").read_text
            wait_for(lambda: "Trend runs in dryrun" in read(), "dryrun")
            assert stage.promote("live", stage.ana, stage.ben).outcome == "completed"
            wait_for(lambda: "Trend runs in live" in read(), "live")
            running.terminate()
            running.communicate(timeout=30)
            assert running.returncode == 0, read()
            assert "Stopped: the session has ended." in read()
            assert stage.client.sessions(stage.world) == []
        finally:
            stage.close()


def test_no_run_only_has_it_judged(person: Person, paper: str) -> None:
    done = person.types(
        "submit", f"{ROOT / 'tests' / 'support' / 'strategies.py'}:Trend", "--world", paper, "--no-run"
    )
    assert done.returncode == 0, done.stderr
    assert "active, rank 1" in done.stdout
    assert person.types("world", "sessions", paper).stdout.strip() == "nothing runs"


def test_watch_prints_what_happens_as_a_person_would_say_it(machine: Machine, paper: str) -> None:
    watching = [
        command(machine, "world", "watch", paper, "-n", "9"),
        command(machine, "world", "watch", paper, "-n", "1", "-t", "policy", "-o", "json"),
    ]
    assert watching[0].stderr is not None
    assert watching[0].stderr.readline().startswith(f"watching {paper}")
    assert watching[1].stderr is not None
    Runner.submit(Trend, world=paper, config=machine.config)
    text, _ = watching[0].communicate(timeout=60)
    assert watching[0].returncode == 0
    assert "is active in dryrun, weight 1" in text
    assert "decided by policy version 1: 1 of 1 active" in text
    with machine.client() as client:
        wait_for(
            lambda: (
                watching[1].poll() is not None
                or client._call("POST", f"/worlds/{paper}/policies", json=PAPER) is None
            ),
            "event",
            30,
        )
    line, _ = watching[1].communicate(timeout=30)
    event: dict[str, Any] = json.loads(line.splitlines()[0])
    assert (event["type"], event["specversion"], event["worldid"]) == ("policy_updated", "1.0", paper)


def test_watch_names_strategies_and_says_why_a_world_is_halted(machine: Machine, paper: str) -> None:
    watching = command(machine, "world", "watch", paper, "-n", "2", "-t", "activation")
    assert watching.stderr is not None
    watching.stderr.readline()
    Runner.submit(Trend, world=paper, config=machine.config, run=False)
    with machine.client() as client:
        wait_for(lambda: client.activation(paper), "activation")
        client.halt(paper, "the prices look wrong")
        text, _ = watching.communicate(timeout=60)
        client.resume(paper)
    assert "Trend is active in dryrun" in text
    assert re.search(r"halted: .*: the prices look wrong \(epoch \d+\)", text)


def test_watch_ends_when_its_token_is_revoked(machine: Machine, paper: str) -> None:
    with machine.client() as client:
        made = machine.issue("visitor", {paper: Role.READER})
        watching = command(machine, "world", "watch", paper, QMTL_GATEWAY__TOKEN=made.token)
        assert watching.stderr is not None
        watching.stderr.readline()
        client.revoke_token(made.info.token_id)
        _, said = watching.communicate(timeout=60)
    assert watching.returncode == 1
    assert said.count("\n") == 1
    assert "[E_TOKEN_REVOKED]" in said


@of_one_gateway
def test_the_figures_for_prometheus(machine: Machine, paper: str) -> None:
    def metrics() -> str:
        return httpx.get(f"{machine.url}/metrics", trust_env=False).text

    Runner.submit(Trend, world=paper, config=machine.config)
    wait_for(lambda: f'sessions{{execution_domain="dryrun",world_id="{paper}"}} 1.0' in metrics(), "session")
    from tests.support.submissions import body_with_node, body_without_node_field, submission_body

    for wrong in (
        submission_body(node_ids_crc32=1),
        body_with_node(period=99),
        body_without_node_field("code_hash"),
    ):
        httpx.post(f"{machine.url}/strategies", json=wrong, headers=machine.headers, trust_env=False)
    found = metrics()
    for name in (
        'nodeid_checksum_mismatch_total{source="dag"}',
        "nodeid_mismatch_total{node_type=",
        "tagquery_nodeid_mismatch_total",
        "nodeid_missing_fields_total",
        "outbox_age_seconds",
        "stream_sockets 1.0",
        "stream_frames_sent_total",
        "session_lag_seconds{",
        "sentinel_skew_seconds 0.",
        "cross_context_cache_hit{",
        "diff_duration_ms_bucket",
        "process_resident_memory_bytes",
    ):
        assert name in found, name
