"""What a person sees of orders and positions: the newest orders, orders as they come, and what is held."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.command import Person
from tests.support.machine import START_LIMIT_S, Machine, wait_for
from tests.support.scenarios import ApplyScenario
from tests.support.trades import refused, traded, withheld
from tests.support.worlds import POLICY, world

D = Decimal


@pytest.fixture(scope="module")
def stage(machine: Machine) -> Iterator[ApplyScenario]:
    """In paper trading."""
    found = ApplyScenario(machine, "faces")
    assert found.promote("dryrun", found.ana).state == "completed"
    yield found
    found.close()


def test_the_newest_orders_are_listed_last_by_the_name_of_their_strategy(
    stage: ApplyScenario, someone: Person
) -> None:
    """They were listed from the oldest on, without an end, and with hashes for names."""

    def ids(*words: str) -> list[str]:
        return [item["order"]["order_id"] for item in someone.reads("world", "orders", stage.world, *words)]

    first, second, third = (order.order_id for order in traded(stage, "KO", "10", "-4", "2.5"))
    late = refused(stage, "KO").order_id
    held_back = withheld(stage, "JNJ", "the stream was silent for 9m").order_id
    assert ids("--tail", "2") == [late, held_back]
    assert ids("-n", "5") == ids()[-5:] == [first, second, third, late, held_back]
    assert ids("--refused", "-n", "1") == ids("--reason", "stale_epoch", "-n", "1") == [late]
    assert ids("--withheld", "-n", "1") == [held_back]
    assert ids("--refused", "--withheld", "-n", "2") == [late, held_back]
    for strategy in ("Trend", stage.strategy, stage.strategy[:20]):
        assert ids("--strategy", strategy, "--tail", "1") == [held_back]
    assert ids("-s", "Trend", "--refused", "-n", "1") == [late]
    number = someone.reads("world", "orders", stage.world, "-n", "5")[0]["seq"]
    assert ids("--after", str(number - 1), "--tail", "2") == [first, second], "the first ones after it"
    shown = someone.types("world", "orders", stage.world).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    listed = [row[2:11] for row in rows]
    assert listed[-5:-1] == [
        ["Trend", "dryrun", "", "KO", "buy", "10", "10", "100", "filled"],
        ["Trend", "dryrun", "", "KO", "sell", "4", "4", "100", "filled"],
        ["Trend", "dryrun", "", "KO", "buy", "2.5", "2.5", "100", "filled"],
        ["Trend", "dryrun", "", "KO", "buy", "1", "", "", "refused"],
    ]
    assert "silent for 9m" in " ".join(shown.split())
    assert stage.strategy[:24] not in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--strategy", "Trent"), 1, "did you mean 'Trend'"),
        (("--strategy", "strategy:ffffffff"), 1, "is no strategy of faces"),
        (("--follow", "--strategy", "Trent"), 1, "did you mean 'Trend'"),
        (("--refused", "--reason", "halted"), 2, "leave --refused and --withheld out"),
        (("--follow", "--after", "3"), 2, "leave --after out"),
        (("--tail", "0"), 2, "--tail"),
        (("--tail", "1001"), 2, "--tail"),
        (("--reason", "late"), 2, "late"),
        (("--reason", "no_capital"), 2, "is no reason of an order in the list"),
        (("--filled",), 2, "--filled"),
    ],
)
def test_a_mistake_gets_a_clear_line(
    stage: ApplyScenario, someone: Person, words: tuple[str, ...], code: int, said: str
) -> None:
    done = someone.types("world", "orders", stage.world, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())
    if code == 1:
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("orders",), ("orders", "--follow"), ("status",)])
def test_a_world_that_does_not_exist_is_named(someone: Person, words: tuple[str, ...]) -> None:
    done = someone.types("world", words[0], "face", *words[1:])
    assert done.returncode == 1
    assert "there is no world" in done.stderr


class Following:
    """`qmtl world orders --follow` as a person starts it."""

    def __init__(self, machine: Machine, folder: Path, *words: str) -> None:
        self._folder = folder
        env = {
            **os.environ,
            "QMTL_GATEWAY__URL": machine.url,
            "QMTL_HOME": str(machine.home),
            "PYTHONPATH": str(ROOT),
        }
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "api.cli", "world", "orders", *words, "--follow"],
                env=env,
                stdout=out,
                stderr=err,
            )

    @property
    def out(self) -> str:
        return (self._folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self._folder / "err").read_text()

    def states(self) -> list[tuple[str, str]]:
        """Id and state of each line of JSON."""
        found = [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]
        return [(item["order"]["order_id"], item["state"]) for item in found]

    def until(self, order_id: str, state: str) -> None:
        wait_for(lambda: self._runs() and (order_id, state) in self.states(), f"{state} of {order_id}")

    def until_said(self, text: str) -> None:
        wait_for(lambda: self._runs() and text in self.err, text)

    def _runs(self) -> bool:
        assert self.process.poll() is None, self.err
        return True

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


def test_orders_are_followed_through_a_restart_of_the_gateway(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    (before,) = traded(stage, "KO", "1")
    following = Following(machine, tmp_path, stage.world, "--tail", "1", "-o", "json")
    try:
        following.until(before.order_id, "filled")
        (second,) = traded(stage, "KO", "2")
        following.until(second.order_id, "filled")
        machine.kill("gateway")
        try:
            following.until_said("orders are shown again when it is back")
        finally:
            machine.start_gateway()
        wait_for(lambda: machine.health()["status"] == "ok", "health", START_LIMIT_S)
        (third,) = traded(stage, "KO", "3")
        late = refused(stage, "KO")
        following.until(third.order_id, "filled")
        following.until(late.order_id, "refused")
        following.until_said("the Gateway is back")
        assert following.interrupt() == 130
    finally:
        following.process.kill()
        following.process.wait()
    shown = following.states()
    assert shown[0] == (before.order_id, "filled"), "one order of before, as asked for"
    assert len(set(shown)) == len(shown), "each change is shown once"
    mine = [before, second, third, late]
    assert list(dict.fromkeys(order_id for order_id, _ in shown)) == [order.order_id for order in mine]
    assert "Traceback" not in following.err


def test_orders_that_are_followed_are_lines_for_a_person_and_only_those_that_are_wanted(
    stage: ApplyScenario, machine: Machine, tmp_path: Path
) -> None:
    following = Following(machine, tmp_path, stage.world, "-s", "Trend", "--withheld", "-n", "1")
    try:
        wait_for(lambda: following.out.startswith("no "), "the header")
        traded(stage, "KO", "1")
        withheld(stage, "JNJ", "the gate is closed now")
        wait_for(lambda: "the gate is closed now" in following.out, "the order")
        assert following.interrupt() == 130
    finally:
        following.process.kill()
        following.process.wait()
    header, *lines = following.out.splitlines()
    assert len(lines) <= 2, "the one of before, and the new one"
    assert all("withheld" in line for line in lines)
    assert lines[-1][header.index("strategy") :].startswith("Trend ")
    assert lines[-1][header.index("symbol") :].startswith("JNJ ")
    assert stage.strategy[:24] not in following.out


# what is held and earned


def test_the_status_shows_what_is_held_and_earned(stage: ApplyScenario, someone: Person) -> None:
    """Positions and profit could not be seen at all."""

    def sums() -> dict[str, Any]:
        (found,) = someone.reads("world", "status", stage.world)["positions"]["strategies"]
        assert found["strategy_id"] == stage.strategy
        return dict(found)

    traded(stage, "IBM", "1")
    before = sums()
    traded(stage, "IBM", "30000", "-10000")
    traded(stage, "IBM", "1", price=110)
    found = sums()
    assert D(found["profit"]) - D(before["profit"]) == 20_001 * 10, "each unit is worth 10 more, less no fee"
    assert D(found["profit_today"]) == D(found["profit"]), "the world began today"
    assert D(found["profit"]) == D(found["cash"]) + D(found["net"])
    assert isinstance(found["gross"], str)
    (ibm,) = [item for item in found["largest"] if item["symbol"] == "IBM"]
    assert (D(ibm["position"]["quantity"]), D(ibm["position"]["mark"])) == (20_002, 110)
    shown = someone.types("world", "status", stage.world).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    of_ibm = next(row for row in rows if "IBM" in row)
    assert (of_ibm[0], of_ibm[1], of_ibm[3], of_ibm[5], of_ibm[6]) == (
        "Trend",
        "paper",
        "20002",
        "110",
        "2200220",
    )
    totals = next(row for row in rows if row[:2] == ["all", "paper"])
    assert D(totals[3]) == D(found["gross"])
    assert "fence      open" in shown


def test_the_status_names_the_largest_positions_and_how_many_more_there_are(
    stage: ApplyScenario, someone: Person
) -> None:
    for number in range(7):
        traded(stage, f"X{number}", str(1000 + number))
    shown = someone.types("world", "status", stage.world).stdout
    assert "X6" in shown
    assert "X1" not in shown
    held = len(someone.reads("world", "positions", stage.world))
    assert f"and {held - 5} more: qmtl world positions {stage.world} lists all" in shown


def test_the_status_shows_a_world_s_capital_beside_what_is_exposed(someone: Person, machine: Machine) -> None:
    with machine.client() as client:
        client.create_world({**world("rich"), "capital": {"amount": "100000", "currency": "EUR"}}, POLICY)
    shown = someone.types("world", "status", "rich").stdout
    assert "capital    100000 EUR" in shown
    assert "positions  none yet" in shown
    assert someone.reads("world", "status", "rich")["capital"] == {"amount": "100000", "currency": "EUR"}
