"""Requests that were stored and not carried out, tried again: many at a time, each with its own time limit.

One that fails or hangs, such as one whose workflow task keeps failing, holds nobody up. It is tried again
later, with growing pauses.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from qmtl_sdk.contracts.durations import retry_pause_s

Attempt = Callable[[], Awaitable[None]]

# Requests that are tried at a time.
_AT_A_TIME = 10

# Seconds that one attempt may take.
_LIMIT_S = 20.0

# Seconds before the first repetition of an attempt that failed; it doubles with each failure.
_RETRY_S = 10.0

# Seconds between two repetitions at most.
_RETRY_LIMIT_S = 300.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Failed:
    """A request whose last attempts failed: how many, and when it is tried again, on the monotonic clock."""

    count: int
    at: float


class Recovery:
    """Tries requests of one kind. It remembers those that failed, as long as they are given to it."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._failed: dict[str, _Failed] = {}
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def run(self, attempts: Mapping[str, Attempt]) -> int:
        """Try the requests that are due, by their keys. Returns how many succeeded."""
        self._failed = {key: failed for key, failed in self._failed.items() if key in attempts}
        now = time.monotonic()
        due = [key for key in attempts if key not in self._failed or self._failed[key].at <= now]
        # Those that never failed come first.
        due.sort(key=lambda key: key in self._failed)
        return sum(await asyncio.gather(*(self._try(key, attempts[key]) for key in due)))

    async def _try(self, key: str, attempt: Attempt) -> bool:
        async with self._places:
            try:
                async with asyncio.timeout(_LIMIT_S):
                    await attempt()
            except Exception as error:  # a row that cannot be read, or a refusal of Temporal
                count = self._failed[key].count + 1 if key in self._failed else 1
                pause = retry_pause_s(count, _RETRY_S, _RETRY_LIMIT_S)
                self._failed[key] = _Failed(count, time.monotonic() + pause)
                _log.warning(f"{self._kind} could not be recovered", key=key, why=repr(error), retry_s=pause)
                return False
            self._failed.pop(key, None)
            return True


async def each(steps: Sequence[Attempt]) -> None:
    """Take steps one after another. One that fails does not keep the others from being tried."""
    failures = []
    for step in steps:
        try:
            await step()
        except Exception as error:
            failures.append(error)
    if failures:
        raise failures[0]
