"""Processes without work wait for a commit instead of reading tables again and again."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import pytest

from activities.storage.commits import CommitWatcher
from activities.storage.database import Database
from activities.storage.elected import run_elected
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.events import record_change

# Far longer than a wake-up takes.
LIMIT_S = 20.0


def quiet(commits: CommitWatcher) -> bool:
    """No commit is seen most of the time. (PostgreSQL commits a little of its own, such as statistics.)"""
    return sum(commits.wait(0.02, threading.Event()) for _ in range(10)) < 3


def test_a_commit_of_any_thread_ends_the_wait_and_a_read_does_not(database: Database) -> None:
    stop = threading.Event()
    with database.watch_commits() as commits:
        with database.read() as session:
            session.connection().exec_driver_sql("SELECT count(*) FROM outbox").scalar_one()
        assert quiet(commits)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(record_change, database, "a", 1, "w")
            assert commits.wait(LIMIT_S, stop)
            waiting.result()
        assert quiet(commits)
        record_change(database, "b", 1, "w")
        assert commits.wait(LIMIT_S, stop)
        stop.set()
        began = time.monotonic()
        assert not commits.wait(LIMIT_S, stop)
        assert time.monotonic() - began < LIMIT_S / 2


def test_an_elected_process_takes_a_turn_at_a_commit_and_none_without(database: Database) -> None:
    stop, taken = threading.Event(), threading.Semaphore(0)

    def turn() -> float:
        taken.release()
        return 3600.0

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_elected, database, "relay", turn, stop)
        try:
            assert taken.acquire(timeout=LIMIT_S)
            assert sum(taken.acquire(timeout=0.1) for _ in range(10)) < 3, "turns without a commit"
            record_change(database, "a", 1, "w")
            assert taken.acquire(timeout=LIMIT_S)
        finally:
            stop.set()
        running.result(LIMIT_S)


def test_commits_one_after_another_do_not_take_away_the_pause_between_turns(database: Database) -> None:
    """An order that rested at its broker was asked for at each heartbeat of anybody."""
    stop, enough = threading.Event(), threading.Event()
    turns: list[float] = []

    def turn() -> float:
        turns.append(time.monotonic())
        if len(turns) == 10:
            enough.set()
        return 3600.0

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_elected, database, "relay", turn, stop)
        number = 0
        while not enough.is_set():
            number += 1
            record_change(database, f"s{number % 7}", number, "w")
        stop.set()
        running.result(LIMIT_S)
    assert min(later - turn for turn, later in pairwise(turns)) > 0.015


def test_a_process_that_lost_its_role_takes_no_turn_after_a_long_wait(database: Database) -> None:
    stop, again = threading.Event(), threading.Event()
    turns: list[float] = []
    lost = QmtlError("E_UNAVAILABLE", "the role has passed on", "none")

    def confirm() -> None:
        raise lost

    @contextmanager
    def elected(role: str) -> Iterator[Callable[[], None] | None]:
        if turns:
            again.set()
            yield None
        else:
            yield confirm

    def turn() -> float:
        turns.append(time.monotonic())
        return 0.6  # longer than a confirmation holds; a commit, such as a heartbeat, brings it forward

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(database, "elected", elected)
        running = pool.submit(run_elected, database, "relay", turn, stop)
        assert again.wait(LIMIT_S)
        stop.set()
        running.result(LIMIT_S)
    assert turns[-1] - turns[0] < 0.55, "no turn without a confirmation that is newer"
