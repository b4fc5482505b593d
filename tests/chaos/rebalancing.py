"""Kill each process at each step of rebalancings, while targets change and applies want the same worlds.

1. Six groups have two worlds and three strategies each, some of them opposite in one symbol. A group carries
   out one run after another; the groups do so at once, over one stack and one account at an unkind exchange.
2. A run gets new shares. It is approved, rejected or aborted at some time. Meanwhile a strategy may set other
   targets, and an apply may want to freeze one of the worlds.
3. A process is killed when the run is at a step: the pair of process and step that was hit least so far. It
   is started again a moment later. The exchange keeps its orders in a file.
4. Each run is waited for. When all have ended and everything rests, `rebalancing_checker` reads what stores
   and exchange hold. Each of its sabotages must be found.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

from temporal.server import free_port
from tests.chaos.exchange import TIME_IN_FLIGHT_S, ask, install
from tests.chaos.rebalancing_group import ACCOUNT, Group
from tests.chaos.rebalancing_kills import Kills, Report
from tests.support import ROOT
from tests.support.machine import Machine, wait_for
from tests.support.rebalancing_checker import Place, rebalancing_violations
from tests.support.rebalancing_facts import collect
from tests.support.rebalancing_sabotage import REBALANCING_SABOTAGES

GROUPS = 6

# Runs with the same worlds; and runs in which a sabotage must be found.
RUNS_AT_ONCE = 50
SABOTAGED_RUNS = 4


class RebalancingChaos:
    """`sabotaged`: the router compares no books, so that what one sabotage leaves stops no other."""

    def __init__(self, home: Path, seed: int, sabotaged: bool = False) -> None:
        """`home`: an empty folder."""
        self._port = free_port()
        self._seed = seed
        self._luck = seed
        options = {"port": self._port, "time_in_flight_s": TIME_IN_FLIGHT_S}
        env = {
            "PYTHONPATH": f"{ROOT}:{install(home)}",
            "QMTL_ORDERS__DRYRUN_BROKER": "exchange",
            "QMTL_ORDERS__DRYRUN_ACCOUNT": ACCOUNT,
            "QMTL_ORDERS__BROKER_OPTIONS": json.dumps(options),
            "QMTL_ORDERS__RECONCILE_EVERY_S": "86400" if sabotaged else "1",
            "QMTL_GATEWAY__RATE_PER_S": "5000",
        }
        self.machine = Machine(home, None, 2.0, **env)
        self._exchange: subprocess.Popen[bytes] | None = None
        self._episodes = 0
        self._stops = threading.Event()

    def up(self) -> "RebalancingChaos":
        self._database = self.machine.database()
        self._start_exchange()
        self.machine.up()
        return self

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.kill()
            self._exchange.wait()
        self._database.close()
        self.machine.close()

    def sabotage(self, name: str) -> None:
        """Put in a defect of `REBALANCING_SABOTAGES` in place of an earlier one."""
        for part in ("worker", "router"):
            self.machine.kill(part)
        env = {"QMTL_TEST_SABOTAGE": name}
        if REBALANCING_SABOTAGES[name].part == "worker":
            self.machine.start_worker("tests.chaos.leaky_worker", **env)
            self.machine.start_router()
        else:
            self.machine.start_worker()
            self.machine.start_router("tests.chaos.leaky_router", **env)

    def kill(self, victim: str) -> None:
        if victim != "exchange":
            self.machine.kill(victim)
            return
        assert self._exchange is not None
        self._exchange.kill()
        self._exchange.wait()

    def restart(self, victim: str) -> None:
        if victim == "exchange":
            self._start_exchange()
        elif victim == "gateway":
            self.machine.start_gateway()
        else:
            self.machine.restart(victim)

    def run(self, runs: int, kills: bool = True, groups: int = GROUPS, sabotage: str = "") -> Report:
        """Carry out so many runs in all; then rest, and check."""
        report, began = Report(self._seed, sabotage), time.monotonic()
        self._episodes += 1
        self._stops.clear()
        ask(self._port, "/unkind", [])
        groups = min(groups, runs)
        found = [
            Group(self.machine, self._database, f"{self._episodes}g{number}", self._seed)
            for number in range(groups)
        ]
        killing = Kills(self, report) if kills else None
        counts = [runs // groups + (number < runs % groups) for number in range(groups)]
        with ThreadPoolExecutor(groups) as people:
            doing = [
                people.submit(self._carry_out, group, count, killing, report)
                for group, count in zip(found, counts, strict=True)
            ]
            try:
                for item in doing:
                    item.result()
            finally:
                self._stops.set()  # after an error or SIGTERM, groups end with the run that they are at
        self._check(found, self._rest(found, report), report)
        for group in found:
            group.close()
        report.seconds = time.monotonic() - began
        return report

    def _carry_out(self, group: Group, count: int, kills: Kills | None, report: Report) -> None:
        for number in range(count):
            if self._stops.is_set():
                return
            try:
                group.run(number, kills, report)
            except AssertionError as error:
                report.violations.append(" ".join(str(error).split())[:300])
                return

    def _rest(self, groups: Sequence[Group], report: Report) -> dict[Place, Decimal]:
        """Wait until nothing is under way; return what targets come to with the weights of decisions."""
        ask(self._port, "/kind", [])
        wanted = dict[Place, Decimal]()
        try:
            for group in groups:
                group.strategies.rest()
                if not report.sabotage:
                    wanted |= group.strategies.settle()
        except AssertionError as error:
            report.violations.append(f"it did not come to rest: {error}")
        return wanted

    def _check(self, groups: Sequence[Group], wanted: Mapping[Place, Decimal], report: Report) -> None:
        first = {world: share for group in groups for world, share in group.first.items()}
        found = collect(self._database, self.machine.home, first, ask(self._port, "/all"))
        facts = replace(found, wanted=wanted)
        report.placed = len(facts.theirs)
        report.violations += rebalancing_violations(facts)
        for run in facts.runs:
            report.trades += Counter(item.state for item in run.trades if item.quantity)
            report.crossed += sum(1 for item in run.trades if item.crossed)

    def _start_exchange(self) -> None:
        """Start it with what it had, and with another luck."""
        journal = self.machine.home / "exchange.journal"
        self._luck += 1
        with (self.machine.home / "exchange.log").open("ab") as log:
            self._exchange = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.chaos.exchange",
                    str(self._port),
                    str(self._luck),
                    str(journal),
                ],
                stdout=log,
                stderr=log,
                cwd=ROOT,
            )
        wait_for(self._exchange_answers, "exchange")

    def _exchange_answers(self) -> bool:
        try:
            return bool(ask(self._port, "/all"))
        except OSError:
            return False


def rebalancing(runs: int, seed: int) -> int:
    """So many runs with kills, fifty to a set of worlds.

    Then some with each sabotage, which must be found.
    """
    whole = Report(seed)
    with tempfile.TemporaryDirectory() as folder, closing(RebalancingChaos(Path(folder), seed)) as chaos:
        chaos.up()
        while whole.runs < runs:
            report = chaos.run(min(RUNS_AT_ONCE, runs - whole.runs))
            print(report.line(), flush=True)
            whole.add(report)
            if not report.runs:
                break
    missed = rebalancing_sabotages(seed)
    print(whole.line(), flush=True)
    print(json.dumps({"violations": len(whole.violations), "missed": missed}), flush=True)
    return 1 if whole.violations or missed else 0


def rebalancing_sabotages(seed: int) -> list[str]:
    """Put each defect in, and none; return the names of those that were not found."""
    missed = []
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(RebalancingChaos(Path(folder), seed, True)) as chaos,
    ):
        report = chaos.up().run(SABOTAGED_RUNS, kills=False, sabotage="none")
        print(report.line(), flush=True)
        missed += ["none"] if report.violations else []
        for name, sabotage in REBALANCING_SABOTAGES.items():
            chaos.sabotage(name)
            report = chaos.run(SABOTAGED_RUNS, kills=False, sabotage=name)
            print(report.line(), flush=True)
            missed += [] if any(sabotage.finding in item for item in report.violations) else [name]
    return missed
