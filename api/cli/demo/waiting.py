"""Wait for what the demo needs, with a limit."""

import time
from collections.abc import Callable

from qmtl_sdk.contracts.errors import QmtlError

LIMIT_S = 30.0
"""Seconds to wait for an event of the demo: a slow machine needs a few."""
POLL_S = 0.05
"""Seconds between two checks of a condition."""


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Check the condition until it holds. Raises QmtlError (E_STACK) where it does not within LIMIT_S."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        require(time.monotonic() <= deadline, what)
        time.sleep(POLL_S)


def require(in_time: bool, what: str) -> None:
    """Raise QmtlError (E_STACK) unless what the demo waited for has happened."""
    if not in_time:
        raise QmtlError(
            "E_STACK",
            f"the demo waited {LIMIT_S:g} s for {what}",
            "qmtl status shows what runs; its logs are in the data folder",
        )
