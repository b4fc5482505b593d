"""A world of a thousand strategies, and a process that judges it again and again, as a worker does.

`python -m benchmarks.judging DSN ARTIFACTS` reads from its input what to do: `judge`, `compute` (as busy, but
without the store), `rest`. At each rest it prints how long each of its judgments held the world's fence.
"""

import json
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from activities.artifacts.folder import FolderArtifacts
from activities.decisions.activities import DecisionActivities, DecisionStores
from activities.messages.evaluation import JudgeCommand
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.sqlite import SqliteDatabase
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from tests.support.desk import GATED, Desk

WORLD = "judged"
STRATEGIES = 1_000
DAYS = 500
DAY = 86_400
RULES = {
    **GATED,
    "selection": {
        "gates": {"and": ["sharpe >= 0"]},
        "score": "sharpe",
        "topk": {"total": 50},
        "constraints": {"correlation": {"max_pairwise": 0.8}},
    },
}

Work = Literal["judge", "compute"]


class JudgedWorld:
    """A world of which each strategy has evidence, with a limit on correlations."""

    def __init__(self, database: Database, artifacts: Path) -> None:
        self._database = database
        self._artifacts = FolderArtifacts(artifacts)
        self._rng = np.random.default_rng(1)
        self._market = self._rng.normal(0, 0.01, DAYS)

    def fill(self) -> None:
        """Make the world and its strategies."""
        desk = Desk(self._database, WORLD, found=policy_from(RULES))
        for number in range(STRATEGIES):
            self._submit(desk, number, float(self._rng.normal(1, 0.3)))

    def submit(self, count: int, sharpe: float) -> None:
        """Give strategies new evidence, all of the same Sharpe ratio."""
        desk = Desk.found(self._database, WORLD)
        for number in self._rng.choice(STRATEGIES, count, replace=False):
            self._submit(desk, number, sharpe)

    def _submit(self, desk: Desk, number: int, sharpe: float) -> None:
        values = self._market * self._rng.uniform(-1, 1) + self._rng.normal(0, 0.01, DAYS)
        values[0] = 0.0
        artifact = encode(Returns(np.arange(DAYS, dtype="int64") * DAY * 10**9, values, DAY, {}, {}, ()))
        digest = content_hash(artifact)
        self._artifacts.put(digest, artifact)
        desk.evidence(f"strategy:{WORLD}{number}", sharpe, digest)

    def judge(self) -> Callable[[], float]:
        """Return what judges the world once, as a worker that has just started: it returns the seconds."""
        desk = Desk.found(self._database, WORLD)
        worlds, policies = SqlWorldStore(self._database), SqlPolicyStore(self._database)
        judge = DecisionActivities(
            DecisionStores(worlds, policies, desk.decisions, desk.fence, self._artifacts)
        ).judge

        def once() -> float:
            command = JudgeCommand(
                store_id=self._database.store_id,
                world_id=WORLD,
                run_id="bench",
                request_ids=(uuid.uuid4().hex,),
            )
            began = time.perf_counter()
            judge(command)
            return time.perf_counter() - began

        return once


class JudgingProcess:
    """The process, from outside."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._answer()

    @contextmanager
    def working(self, work: Work) -> Iterator[list[float]]:
        """Let it work while the block runs, at least once.

        The list is filled at the end: for how many seconds each judgment held the fence.
        """
        found: list[float] = []
        self._say(work)
        self._answer()
        yield found
        self._say("rest")
        found.extend(self._answer())

    def _say(self, what: str) -> None:
        assert self._process.stdin is not None  # a pipe was asked for
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


@contextmanager
def judging_process(dsn: str, artifacts: Path) -> Iterator[JudgingProcess]:
    """Start the process; it has judged the world once."""
    command = [sys.executable, "-m", "benchmarks.judging", dsn, str(artifacts)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield JudgingProcess(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


def timed(database: Database, held: list[float]) -> None:
    """Note for how long each transaction of this database holds the judged world's fence, to its commit.

    With SQLite, that is its whole time as the only writer.
    """

    class Timed(database.transaction_type):  # type: ignore[name-defined, misc]  # the database's own
        def __enter__(self) -> Self:
            entered: Self = super().__enter__()
            self._since = time.perf_counter()
            self._holds = False
            return entered

        def lock(self, name: str, within_ms: int = 0) -> None:
            super().lock(name, within_ms)
            if name == f"fence:{WORLD}":
                self._holds = True
                if not isinstance(database, SqliteDatabase):
                    self._since = time.perf_counter()

        def __exit__(self, *error: object) -> None:
            if self._holds:
                held.append(time.perf_counter() - self._since)
            super().__exit__(*error)

    database.transaction_type = Timed


def main(dsn: str, artifacts: str) -> None:
    held: list[float] = []
    with closing(open_database(dsn)) as database:
        timed(database, held)
        judge = JudgedWorld(database, Path(artifacts)).judge()
        judge()
        answer([])
        for line in sys.stdin:
            rest, before = threading.Event(), len(held)
            thread = threading.Thread(
                target=repeat, args=(judge if line.strip() == "judge" else compute, rest)
            )
            thread.start()
            answer([])
            sys.stdin.readline()
            rest.set()
            thread.join()
            answer(held[before:])


def repeat(work: Callable[[], float], rest: threading.Event) -> None:
    work()
    while not rest.is_set():
        work()


def compute() -> float:
    """Keep a core busy for a moment, as judgments do."""
    began = time.perf_counter()
    while time.perf_counter() - began < 0.1:
        blake2b(b"x" * 1000).hexdigest()
    return time.perf_counter() - began


def answer(what: Any) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
