"""Wait for the end of a run by polling the store."""

import asyncio
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

# Seconds between two polls: they double, since most runs wait for people.
_POLL_S = 0.02
_MAX_POLL_S = 0.5


class _Run(Protocol):
    """The status of a run; `outcome` is None until it has ended."""

    @property
    def outcome(self) -> str | None: ...


_R = TypeVar("_R", bound=_Run)


async def poll_until_ended(find: Callable[[], _R], limit_s: float) -> _R:
    """Read a run until it has ended, for `limit_s` seconds at most, and return what was read last."""
    deadline, pause = time.monotonic() + limit_s, _POLL_S
    while True:
        found = await asyncio.to_thread(find)
        left = deadline - time.monotonic()
        if found.outcome is not None or left <= 0:
            return found
        await asyncio.sleep(min(pause, left))
        pause = min(2 * pause, _MAX_POLL_S)
