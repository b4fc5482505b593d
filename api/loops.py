"""A Gateway's background loops: each repeats its turn, and no error ends one for good.

A loop is a turn that is awaited again and again. A turn that raises is logged and repeated after a pause that
doubles each time; until one succeeds, the loop has a fault, which `/health` shows.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from activities.storage.heartbeats import fault_text
from qmtl_sdk.contracts.durations import retry_pause_s

Turn = Callable[[], Awaitable[float]]
"""One turn of a loop. It returns the seconds until the next one is due."""

# Seconds before the first repetition of a turn that failed; it doubles with each failure.
_RETRY_S = 0.5

# Seconds between two repetitions at most.
_RETRY_LIMIT_S = 15.0

_log = structlog.get_logger()


@dataclass
class Loop:
    """A loop with its failures. `limit_s`: seconds that a turn may take.

    None: no limit, since it waits for events or has much to do.
    """

    turn: Turn
    limit_s: float | None
    failures: int = 0
    fault: str = ""
    begun: float = field(default_factory=time.monotonic)
    waits: bool = False

    def describe(self) -> str:
        """Return what is wrong with it; empty where nothing is."""
        if self.fault:
            return f"failed {self.failures} times in a row: {self.fault}"
        if self.limit_s is not None and not self.waits and time.monotonic() - self.begun > self.limit_s:
            return f"hangs: its turn has not ended within {self.limit_s:g} s"
        return ""


class BackgroundLoops:
    """Runs loops until it is stopped."""

    def __init__(self) -> None:
        self._loops: dict[str, Loop] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    def start(self, name: str, turn: Turn, limit_s: float | None = None) -> None:
        """Start a loop. A turn that takes longer than `limit_s` seconds is a fault; None: no limit."""
        loop = self._loops[name] = Loop(turn, limit_s)
        self._tasks.append(asyncio.create_task(self._run(name, loop), name=name))

    async def stop(self) -> None:
        """Cancel all loops, and wait until they have ended."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def faults(self) -> dict[str, str]:
        """Return what is wrong with each loop that has a fault, by name."""
        return {name: text for name, loop in self._loops.items() if (text := loop.describe())}

    async def _run(self, name: str, loop: Loop) -> None:
        while True:
            loop.begun = time.monotonic()
            loop.waits = False
            try:
                pause = await loop.turn()
                loop.failures, loop.fault = 0, ""
            except (Exception, asyncio.CancelledError) as error:  # whatever it is, the loop goes on
                if self._stopping:
                    raise
                loop.failures += 1
                loop.fault = fault_text(error)
                pause = retry_pause_s(loop.failures, _RETRY_S, _RETRY_LIMIT_S)
                _log.warning(
                    "a loop failed", loop=name, failures=loop.failures, why=repr(error), retry_s=pause
                )
            loop.waits = True
            await asyncio.sleep(pause)
