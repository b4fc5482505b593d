"""How much one caller may ask of a Gateway: requests a second, and open streams."""

import threading
import time
from collections import Counter, OrderedDict

from qmtl_sdk.contracts.errors import QmtlError

_CALLERS = 10_000


class RateLimit:
    """A bucket for each caller: it holds two seconds' worth of requests and fills at the rate."""

    def __init__(self, per_s: float) -> None:
        self._per_s, self._size, self._lock = per_s, max(1.0, 2 * per_s), threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Raises QmtlError (E_RATE), with the seconds after which to ask again."""
        now = time.monotonic()
        with self._lock:
            level, at = self._buckets.pop(caller, (self._size, now))
            level = min(self._size, level + (now - at) * self._per_s)
            self._buckets[caller] = (level - 1, now) if level >= 1 else (level, now)
            if (
                len(self._buckets) > _CALLERS
            ):  # the one that has not asked for longest has a full bucket again
                self._buckets.popitem(last=False)
        if level < 1:
            wait = (1 - level) / self._per_s
            raise QmtlError(
                "E_RATE",
                f"more than {self._per_s:g} requests a second",
                f"ask again in {wait:.3f} s",
                retry_after=round(wait, 3),
            )


class SocketLimit:
    """Open streams by caller."""

    def __init__(self, limit: int) -> None:
        self._limit, self._open = limit, Counter[str]()

    def enter(self, caller: str) -> None:
        """Raises QmtlError (E_SOCKETS)."""
        if self._open[caller] >= self._limit:
            raise QmtlError(
                "E_SOCKETS",
                f"{caller} has {self._limit} open streams already",
                "close some; gateway.max_sockets sets the limit",
            )
        self._open[caller] += 1

    def leave(self, caller: str) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    @property
    def open(self) -> int:
        return self._open.total()
