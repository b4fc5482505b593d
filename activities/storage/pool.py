"""A pool of what one thread uses at a time, such as a connection or an open file."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

# Items that stay open for the next thread.
_IDLE = 16


class Closes(Protocol):
    """What a pool keeps."""

    def close(self) -> None: ...


ItemT = TypeVar("ItemT", bound=Closes)


class Pool(Generic[ItemT]):
    """Makes items where none is idle. An item of each thread would stay open when the thread has ended."""

    def __init__(self, make: Callable[[], ItemT]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[ItemT] = []
        self._closed = False

    @contextmanager
    def take(self) -> Iterator[ItemT]:
        """Use an item alone."""
        with self._lock:
            item = self._idle.pop() if self._idle else None
        if item is None:
            item = self._make()
        try:
            yield item
        finally:
            with self._lock:
                keep = not self._closed and len(self._idle) < _IDLE
                if keep:
                    self._idle.append(item)
            if not keep:
                item.close()

    def close(self) -> None:
        """Close all items: those in use once they are returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for item in idle:
            item.close()
