"""The `qmtl` command as a person uses it, mistakes included."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import Machine


@pytest.fixture
def person(tmp_path: Path, machine: Machine) -> Person:
    return Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))


MINE = """
import pandas as pd
from qmtl_sdk import Node, Strategy, StreamInput

class Mine(Strategy):
    def setup(self):
        price = StreamInput(tags=["ACME", "price"], interval="1d", period=10)

        def rising(view):
            close = view.as_frame(price, "1d", columns=["close"]).frame["close"]
            return pd.DataFrame({"position": (close > close.shift(9)).astype(float)})

        self.add_nodes([Node(price, rising, name="rising")])
"""
WORLD = """
world: mine
clock: { replay: { start: 2024-01-01 } }
data:
  presets:
    - { name: prices, source: csv, path: acme.csv, interval: 1d, streams: { ACME: [ACME, price] } }
policy: { preset: sandbox }
"""


def test_ones_own_strategy_over_ones_own_file(person: Person) -> None:
    days = "".join(
        f"2023-{month:02}-{day:02},{100 + month * 3 + day % 7}\n"
        for month in range(1, 13)
        for day in range(1, 29)
    )
    (person.folder / "acme.csv").write_text("Date,Close\n" + days)
    (person.folder / "mine.yml").write_text(WORLD)
    (person.folder / "mine.py").write_text(MINE)
    created = person.types("world", "create", "mine.yml")
    assert "prices/ACME: 336 bars, 2023-01-01 to 2023-12-28, 26 missing" in created.stdout
    result = person.reads("submit", "mine.py", "--world", "mine")
    assert result["active"]
    assert (result["name"], result["rank"], result["weight"]) == ("Mine", 1, 1.0)
    assert "26 bars that its calendar expects" in result["precheck"]["warnings"][0]
    assert "Mine" in person.types("world", "show", "mine").stdout
    assert "mine" in person.types("world", "list").stdout
    assert person.reads("world", "decide", "mine")["reason"] == "1 of 1 active: Mine"


@pytest.mark.parametrize(
    ("files", "words", "code", "said"),
    [
        ({}, ["submit", "none.py", "-w", "equities"], 1, "there is no file none.py"),
        ({"x.txt": ""}, ["submit", "x.txt", "-w", "equities"], 1, "not a Python file"),
        ({"x.py": "def f(:\n"}, ["submit", "x.py", "-w", "equities"], 1, "x.py, line 1: SyntaxError"),
        (
            {"x.py": "\nimport nonsense_package\n"},
            ["submit", "x.py", "-w", "equities"],
            1,
            "x.py, line 2: ModuleNotFoundError",
        ),
        ({"x.py": "a = 1\n"}, ["submit", "x.py", "-w", "equities"], 1, "no class derived from Strategy"),
        ({"x.py": MINE}, ["submit", "x.py:Mien", "-w", "equities"], 1, "did you mean 'Mine'"),
        ({"x.py": MINE}, ["submit", "x.py", "-w", "equites"], 1, "did you mean 'equities'"),
        ({"x.py": MINE}, ["submit", "x.py", "-w", "equities"], 1, "E_STREAM_UNBOUND"),
        ({"x.py": MINE}, ["submit", "x.py"], 2, "Missing option"),
        (
            {"x.py": MINE.replace('"close"]).', '"clos"]).').replace("ACME", "KO")},
            ["submit", "x.py", "-w", "equities"],
            1,
            "has no column clos",
        ),
        (
            {"x.py": MINE.replace("shift(9)", "shift(9) / nonsense").replace("ACME", "KO")},
            ["submit", "x.py", "-w", "equities"],
            1,
            "x.py: `return pd.DataFrame",
        ),
        ({}, ["world", "create", "none.yml"], 1, "can't be read"),
        ({"w.yml": "world: W W"}, ["world", "create", "w.yml"], 1, "E_WORLD_INVALID"),
        ({"w.yml": WORLD}, ["world", "create", "w.yml"], 1, "there is no file"),
        ({}, ["world", "show", "nowhere"], 1, "E_WORLD_UNKNOWN"),
        ({"qmtl.yml": "gatway: {}"}, ["status"], 1, "did you mean 'gateway'"),
        (
            {"qmtl.yml": "profile: prod"},
            ["config", "validate", "--target", "all"],
            1,
            "profile prod lacks gateway.database_backend: postgres, gateway.database_dsn, temporal.address, "
            "events.bus",
        ),
        (
            {"qmtl.yml": "gateway: { database_dsn: 'postgresql://localhost/qmtl' }"},
            ["config", "validate"],
            1,
            "set gateway.database_backend: postgres, or remove gateway.database_dsn",
        ),
        (
            {"qmtl.yml": "orders: { live_broker: papr }"},
            ["config", "validate"],
            1,
            "there is no broker 'papr' (did you mean 'paper'?)",
        ),
        ({"qmtl.yml": "events: { bus: kafka }"}, ["config", "validate"], 1, "there is no bus 'kafka'"),
        ({}, ["nonsense"], 2, "No such command"),
    ],
)
def test_a_mistake_is_one_clear_line(
    person: Person, files: dict[str, str], words: list[str], code: int, said: str
) -> None:
    for name, text in files.items():
        (person.folder / name).write_text(text)
    done = person.types(*words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1, done.stderr


def test_a_world_that_allows_live_is_created_with_live_alone(person: Person) -> None:
    days = "".join(f"2023-01-{day:02},{100 + day}\n" for day in range(1, 29))
    (person.folder / "acme.csv").write_text("Date,Close\n" + days)
    (person.folder / "w.yml").write_text(WORLD.replace("world: mine", "world: may_trade\nallow_live: true"))
    refused = person.types("world", "create", "w.yml")
    assert (refused.returncode, "add --live" in refused.stderr) == (1, True)
    assert person.types("world", "create", "w.yml", "--live").returncode == 0
    assert person.reads("world", "show", "may_trade")["world"]["spec"]["allow_live"]


def test_a_mistake_is_an_object_for_programs(person: Person) -> None:
    done = person.types("world", "show", "nowhere", "-o", "json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "E_WORLD_UNKNOWN"


def test_a_strategy_that_is_judged_and_not_active_has_its_own_exit_code(
    person: Person, machine: Machine
) -> None:
    from tests.support.worlds import world

    with machine.client() as client:
        client.create_world(world("strict"), {"selection": {"gates": {"and": ["sharpe >= 50"]}}})
    (person.folder / "x.py").write_text(MINE.replace("ACME", "KO"))
    done = person.types("submit", "x.py", "-w", "strict")
    assert done.returncode == 4
    assert "not active: sharpe >= 50: sharpe is" in done.stdout


def test_no_gateway_is_said_with_its_own_exit_code(tmp_path: Path) -> None:
    done = Person(tmp_path, QMTL_HOME=str(tmp_path)).types("world", "list")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "qmtl up" in done.stderr


def test_the_configuration_says_where_it_comes_from(person: Person) -> None:
    rows = {row["key"]: row for row in person.reads("config", "show")}
    assert rows["gateway.url"]["from"] == "QMTL_GATEWAY__URL"
    assert [key for key, row in rows.items() if not row["meaning"]] == []


def shows_a_rebalancing(found: dict[str, Any]) -> None:
    assert (found["outcome"], len(found["worlds"])) == ("completed", 2)
    assert found["fills"] == found["orders"] == len(found["deltas"]) == 2
    assert (found["crossed"], found["dropped"], found["tracking_error"]) == (2, [], 0)
    assert float(found["largest_gap_in_lots"]) < 1
    assert found["ledger_balanced"]


def shows_the_loop(demo: dict[str, Any]) -> None:
    momentum, fx, coin = demo["strategies"]
    assert (momentum["active"], fx["active"], coin["active"]) == (True, True, False)
    assert {
        "name",
        "strategy_id",
        "workflow_id",
        "effective_mode",
        "active",
        "rank",
        "weight",
        "metrics",
        "nodes_new",
        "nodes_reused",
        "violations",
        "seconds",
    } <= momentum.keys()
    assert coin["violations"][0]["rule"] == "sharpe >= 0.6"
    assert demo["resubmission"]["strategy_id"] == momentum["strategy_id"]
    assert (demo["resubmission"]["nodes_new"], demo["resubmission"]["nodes_reused"]) == (0, 8)
    assert demo["temporal_ui"].startswith("http://127.0.0.1:")
    stream = demo["stream"]
    assert stream["max_gap"] == 0
    assert stream["reconnects"] >= 1
    assert stream["delivery_p95_ms"] < 5000
    assert stream["tag_query"] == {"queues_before": 1, "queues_after": 2, "node_id_unchanged": True}
    assert {
        "activation_updated",
        "decision_updated",
        "queue_updated",
        "tagquery.upsert",
        "session.opened",
        "session.ended",
    } <= set(stream["events_by_type"])
    assert stream["state_hash_matches"]
    assert stream["bars"] > 0
    applied, orders = demo["apply"], demo["orders"]
    assert [step["name"] for step in applied["steps"]] == [
        "requested",
        "approval",
        "freeze",
        "drain",
        "switch",
        "unfreeze",
    ]
    assert [item["actor"] for item in applied["approvals"]] == ["ana", "ben"]
    assert applied["epoch_after"] > applied["epoch_before"]
    assert {item["kind"] for item in applied["acks"]} == {"session", "gateway"}
    assert {"dryrun accepted"} <= orders["before"].keys() <= {"dryrun accepted", "dryrun withheld"}
    assert "live accepted" in orders["after"]
    assert orders["accepted"] >= 10
    assert orders["filled"] <= orders["accepted"]
    assert not any("accepted" in kind for kind in orders["during"])
    assert sum(orders["refused_by_reason"].values()) >= 1
    assert demo["rollback"]["outcome"] == "completed"
    shows_a_rebalancing(demo["rebalancing"])
    assert demo["trading"]["audit_entries"] > 20
    page = Path(demo["report"]).read_text()
    assert "Equity, from 1" in page
    assert "Momentum" in page


def test_runner_starts_the_stack_where_none_is_configured_and_says_so(newcomer: Person) -> None:
    newcomer.types("world", "create", str(ROOT / "examples" / "equities.yml"))
    newcomer.types("down")
    done = newcomer.runs(sys.executable, str(ROOT / "examples" / "first_strategy.py"))
    assert done.stdout.startswith("First in equities: active, rank 1"), done.stderr
    assert "starting the embedded stack. It stays up until `qmtl down`." in done.stderr
    assert newcomer.reads("status")["running"]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Person]:
    """A person who installed the wheel into an empty environment, and has nothing up."""
    uv, python = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv"), tmp_path / "env" / "bin" / "python"
    found = Person(tmp_path, python.with_name("qmtl"), QMTL_HOME=str(tmp_path / "home"))

    def runs(*words: str) -> str:
        done = found.runs(uv, *words)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    runs("build", "--quiet", "--wheel", "--out-dir", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    runs("venv", "--quiet", "--python", sys.executable, str(tmp_path / "env"))
    only_qmtl = ["--no-dev", "--no-emit-project", "--no-hashes", "--no-header"]
    locked = tmp_path / "locked.txt"
    locked.write_text(runs("export", "--quiet", "--project", str(ROOT), "--locked", *only_qmtl))
    runs("pip", "install", "--quiet", "--python", str(python), "-r", str(locked), str(wheel))
    yield found
    found.types("down")


@pytest.mark.timeout(600)
def test_the_installed_wheel_runs_the_demo_from_nothing_and_what_it_leaves_up(installed: Person) -> None:
    shows_the_loop(installed.reads("demo"))
    status = installed.reads("status")
    assert (status["running"], status["health"]["status"]) == (True, "ok")
    first = installed.reads("up")
    assert installed.reads("up") == first
    os.kill(first["worker"]["pid"], 9)
    healed = installed.reads("up")
    assert healed["worker"]["pid"] != first["worker"]["pid"]
    assert healed["gateway"] == first["gateway"]
    stopped = ["supervisor", "gateway", "router", "relay", "worker", "temporal"]
    assert installed.reads("down")["stopped"] == stopped
    assert installed.reads("down")["stopped"] == []
    again = installed.reads("up")
    assert again["temporal_ui"] == first["temporal_ui"]
    # One judges, one runs, one trades, two share the capital.
    assert len(installed.reads("world", "list")) == 5
