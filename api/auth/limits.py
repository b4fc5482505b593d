"""Limits of a Gateway: requests a second, costly ones at a time and open streams of a caller, parameters."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from qmtl_sdk.contracts.errors import QmtlError

BURST_S = 2.0
"""Seconds' worth of requests that a caller may send at once."""
MAX_PATH = 256
"""Characters of a parameter in a request's path: ids, hashes and topics are shorter."""
MAX_QUERY = 1000
"""Characters of a parameter after the path: the longest is a list of tags."""
MAX_PARAMETERS = 100
"""Parameters after the path."""
_MAX_CALLERS = 10_000
"""Buckets that are kept; the longest unused one is full again and may be dropped."""


class RateLimit:
    """A token bucket per caller: it holds BURST_S seconds' worth of requests and fills at the rate."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._size = max(1.0, BURST_S * per_s)
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """By caller: the level of the bucket, and the monotonic time in seconds at which it had it."""

    def take(self, caller: str) -> None:
        """Take one request from the caller's bucket.

        Raises QmtlError: E_RATE where the bucket is empty, with the seconds after which to retry.
        """
        now = time.monotonic()
        with self._lock:
            level, since = self._buckets.pop(caller, (self._size, now))
            level = min(self._size, level + (now - since) * self._per_s)
            self._buckets[caller] = (level - 1 if level >= 1 else level, now)
            if len(self._buckets) > _MAX_CALLERS:
                self._buckets.popitem(last=False)
        if level < 1:
            wait = (1 - level) / self._per_s
            raise QmtlError(
                "E_RATE",
                f"more than {self._per_s:g} requests a second",
                f"retry in {wait:.3f} s",
                retry_after=round(wait, 3),
            )

    def give_back(self, caller: str) -> None:
        """Put a request that was taken, and did not count, back into the caller's bucket."""
        with self._lock:
            if caller in self._buckets:
                level, since = self._buckets[caller]
                self._buckets[caller] = (level + 1, since)


class OneAtATime:
    """Lets each holder, a caller or this whole Gateway, have one request at a time of a costly kind.

    Other threads may ask meanwhile.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._holders = set[str]()

    @contextmanager
    def held(self, holder: str) -> Iterator[None]:
        """Hold a place during a request. Raises QmtlError (E_RATE) where another request holds it."""
        with self._lock:
            if holder in self._holders:
                raise QmtlError(
                    "E_RATE",
                    f"another {self._kind} of {holder} is under way",
                    "try again when it has ended",
                    retry_after=5.0,
                )
            self._holders.add(holder)
        try:
            yield
        finally:
            with self._lock:
                self._holders.remove(holder)


class SocketLimit:
    """Counts open streams, and requests that wait, by caller."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = Counter[str]()

    def enter(self, caller: str) -> None:
        """Count a stream. Raises QmtlError: E_SOCKETS where the caller has as many as allowed."""
        if self._open[caller] >= self._limit:
            raise QmtlError(
                "E_SOCKETS",
                f"{caller} has {self._limit} open streams and waiting requests already",
                "close some; gateway.max_sockets sets the limit",
            )
        self._open[caller] += 1

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        """Count a request while it waits. Raises QmtlError (E_SOCKETS) as `enter` does."""
        self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)

    def leave(self, caller: str) -> None:
        """Count a stream as closed."""
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    @property
    def open(self) -> int:
        """Number of open streams of all callers."""
        return self._open.total()
