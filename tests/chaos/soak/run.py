"""The run of `make soak`: one world on a machine of its own, used for a year without a pause.

1. Create the world; submit every strategy once; bring four of them into dryrun, where they trade.
2. Let a year pass: submissions, judgments, orders and applies are spread evenly over it, retention runs
   every week, and every day what the processes and files take is noted.
3. Wait until everything has ended, check what was written, compare the last tenth with the first one after
   the tables have filled, and print both as a table and a plot.

The forty strategies are the same all year, as their authors submit them again: what a judgment costs grows
with the strategies of a world, which is none of this run's questions. The prices end before the year begins,
so that the fingerprint that is pinned stays the same.
"""

import json
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

from sqlmodel import func, select

from activities.applies.requests import SqlApplyRequests
from activities.storage.tables import DecisionRow
from benchmarks.submit import evidence, submission
from qmtl_sdk import Runner
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.submission import EvidenceRef, StrategySubmit
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.client import GatewayClient
from tests.chaos.soak.check import violations
from tests.chaos.soak.figures import ALLOWED, FILLING, TENTH, Figures
from tests.chaos.soak.load import WORLD, Authors, Load, Operator, Submitted, Trader, acknowledging, judge
from tests.chaos.soak.samples import rows_of, sample
from tests.chaos.soak.upkeep import RETENTION
from tests.chaos.soak.year import DAYS, Year
from tests.support.machine import Machine
from tests.support.strategies import Trend
from tests.support.worlds import POLICY, world

FULL_S = 1800
"""Seconds of a run with the full counts."""

COUNTS = {"submissions": 1_000, "judgments": 13_000, "orders": 500_000, "applies": 200}
"""What is done in a full year; each submission has a judgment as well.

Some judgments answer two requests, so more are requested than the ten thousand that are wanted.
"""

_SYMBOLS = ("AAPL", "JNJ", "KO", "MSFT")
_STRATEGIES = 40

# How many people submit side by side, each with strategies of their own, and how many want judgments.
_AUTHORS = 2
_JUDGES = 2

# Threads: those, the traders and the operator.
_USERS = _AUTHORS + _JUDGES + len(_SYMBOLS) + 1

# Days after which a year that is behind has not been what it should be: the machine is too slow for it.
_LATE = 1.1 * DAYS


def soak(seconds: int, seed: int) -> int:
    """A year in `seconds`, with counts in proportion; print what became of it."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        kept = {f"QMTL_RETENTION__{name.upper()}": str(days) for name, days in RETENTION}
        machine = Machine(
            home,
            fork=False,
            heartbeat_s=60.0,
            **{"QMTL_GATEWAY__RATE_PER_S": "5000", "QMTL_GATEWAY__SESSION_LEASE_S": "60", **kept},
        )
        with closing(machine):
            machine.up()
            return Soak(machine, seconds, seed).run()


class Soak:
    """A year on a machine that is up."""

    def __init__(self, machine: Machine, seconds: int, seed: int) -> None:
        self._machine = machine
        self._seed = seed
        self._counts = {name: max(1, round(count * seconds / FULL_S)) for name, count in COUNTS.items()}
        self._year = Year(seconds)
        self._figures = Figures(self._year)
        self._rows: list[dict[str, int]] = []

    def run(self) -> int:
        """Return the exit code: 1 where something is over, or broken."""
        with self._machine.client() as client, self._machine.client() as setting_up, ExitStack() as stack:
            approver = stack.enter_context(GatewayClient(self._machine.url, self._machine.token("ana")))
            load = Load(self._year, self._figures, client)
            strategies, names = self._prepare(setting_up, approver)
            epoch = setting_up.fence(WORLD).epoch
            traders = [Trader(load, name, epoch) for name in names]
            operator = Operator(load, approver, names, self._seed)
            authors = [Authors(load, strategies[number::_AUTHORS]) for number in range(_AUTHORS)]
            archived = self._pass(load, authors, traders, operator)
            for trader in traders:
                trader.end()
        accepted = set().union(*(trader.accepted for trader in traders))
        broken = [*self._year.errors, *violations(self._machine, accepted)]
        over = [found.name for found in self._figures.compared() if found.is_over]
        over += ["days"] if self._took_days > _LATE else []
        print(self._figures.table(), self._figures.plot(), sep="\n\n", end="\n\n")
        summary = {
            "seed": self._seed,
            "seconds": self._year.seconds,
            "took_days": round(self._took_days),
            **self._counts,
            "decisions": self._decisions(),
            "accepted": len(accepted),
            "refused": dict(sum((trader.refused for trader in traders), Counter[str]())),
            "outcomes": dict(operator.outcomes),
            "archived": archived,
            "figures": self._figures.json_list(),
            "grown": self._grown(),
            "over": over,
            "violations": len(broken),
            "first": broken[:5],
        }
        print(json.dumps(summary), flush=True)
        return 1 if broken or over else 0

    def _decisions(self) -> int:
        """How many decisions were made: one may answer several requests."""
        with closing(self._machine.database()) as database, database.read() as session:
            return session.exec(select(func.max(DecisionRow.seq))).one() or 0

    def _grown(self) -> dict[str, list[int]]:
        """The tables that have grown since the first tenth by more than is allowed, with both counts."""
        first, last = self._rows[0], self._rows[-1]
        return {name: [first[name], count] for name, count in last.items() if count > ALLOWED * first[name]}

    def _prepare(
        self, client: GatewayClient, approver: GatewayClient
    ) -> tuple[list[Submitted], tuple[str, ...]]:
        """Create the world, and bring its traders into dryrun; return all strategies and the traders' ids."""
        spec = world(WORLD) | {
            "clock": {"replay": {"start": "2023-01-01T00:00:00Z", "speed": self._year.speed}}
        }
        client.create_world(spec, POLICY)
        config = self._machine.config
        names = tuple(
            Runner.submit(Trend(symbol), world=WORLD, config=config, run=False).strategy_id
            for symbol in _SYMBOLS
        )
        with closing(self._machine.database()) as database:
            known = SqlApplyRequests(database).planning_context(WORLD).evidence
        (fingerprint,) = {known[name].dataset_fingerprint for name in names}
        gating = {
            "domains": {"from": "backtest", "to": "dryrun"},
            "dataset_fingerprint": fingerprint,
            "share_policy": "feature-artifacts-only",
            "approvals": {"required": 1},
        }
        client.add_policy(WORLD, {**POLICY, "gating_policy": gating})
        client.decide(WORLD, uuid.uuid4().hex)
        client.apply(WORLD, ApplyRequest(run_id="to-dryrun", to="dryrun", strategies=names))
        approver.approve(WORLD, "to-dryrun", ApprovalBody())
        status = client.apply_status(WORLD, "to-dryrun", wait_s=30)
        assert status.outcome == "completed", status.waits_for
        trading = [
            Submitted(_trend(symbol), EvidenceRef(returns_hash=known[name].returns_hash))
            for symbol, name in zip(_SYMBOLS, names, strict=True)
        ]
        proof = evidence(client)
        others = [Submitted(submission(number), proof) for number in range(_STRATEGIES - len(trading))]
        first = Authors(Load(self._year, Figures(self._year), client), others)
        for number in range(len(others)):
            first.submit(number)
        return [*trading, *others], names

    def _pass(
        self, load: Load, authors: list[Authors], traders: list[Trader], operator: Operator
    ) -> dict[str, int]:
        """Let the year pass; return how many rows of each kind were archived."""
        year, counts = self._year, self._counts
        year.begin()
        with self._retention() as upkeep, acknowledging(load, traders), ThreadPoolExecutor(_USERS) as threads:
            waiting: list[Future[None]] = [
                threads.submit(year.spread, -(-counts["orders"] // len(traders)), trader.order)
                for trader in traders
            ]
            waiting.append(threads.submit(year.spread, counts["applies"], operator.apply))
            for author in authors:
                each = -(-counts["submissions"] // len(authors))
                waiting.append(threads.submit(year.spread, each, author.submit))
            for _ in range(_JUDGES):
                each = -(-counts["judgments"] // _JUDGES)
                waiting.append(threads.submit(year.spread, each, partial(judge, load)))
            try:
                self._watch(waiting)
            finally:
                year.ended.set()
            for thread in waiting:
                thread.result()
            self._took_days = year.day
            self._count()
            output, _ = upkeep.communicate(timeout=300)
            assert upkeep.returncode == 0, "retention has failed; it has said why"
        found: dict[str, int] = json.loads(output)
        return found

    def _watch(self, waiting: list[Future[None]]) -> None:
        """Note what everything takes, day by day but not more often than every second, until all is done."""
        every = max(1.0, DAYS / self._year.seconds)
        while not all(thread.done() for thread in waiting):
            failed = [thread for thread in waiting if thread.done() and thread.exception()]
            if failed or self._year.wait(self._year.day + every):
                return
            sample(self._machine, self._figures)
            if not self._rows and self._year.day > FILLING + TENTH:
                self._count()

    def _count(self) -> None:
        with closing(self._machine.database()) as database:
            self._rows.append(rows_of(database))

    @contextmanager
    def _retention(self) -> Iterator["subprocess.Popen[str]"]:
        """Retention in a process of its own, as its work is not what the soak's threads wait for."""
        config = self._machine.config
        command = [sys.executable, "-m", "tests.chaos.soak.upkeep", self._machine.dsn]
        command += [str(config.artifact_dir), self._year.began_at.isoformat(), str(self._year.seconds)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                process.kill()


def _trend(symbol: str) -> StrategySubmit:
    """The body of a submission of a trader's strategy."""
    build = BuiltStrategy(Trend(symbol))
    return StrategySubmit(world_id=WORLD, dag=build.dag, node_ids_crc32=build.crc32, runner="soak")
