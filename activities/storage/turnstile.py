"""A fair queue of SQLite's writers, over all processes.

SQLite serves waiting writers in no order: beside busy ones a writer may wait for seconds. Two locks make them queue: whoever holds the first is next
for the second. The kernel lets go of both when a process dies.
"""

from pathlib import Path
from types import TracebackType

import portalocker


class WriterTurnstile:
    """Held while a transaction writes. One for each thread, since a lock belongs to an open file."""

    def __init__(self, path: Path) -> None:
        self._next, self._writer = (
            path.with_name(f"{path.name}.{part}").open("w") for part in ("next", "writer")
        )

    def __enter__(self) -> None:
        portalocker.lock(self._next, portalocker.LockFlags.EXCLUSIVE)
        try:
            portalocker.lock(self._writer, portalocker.LockFlags.EXCLUSIVE)
        finally:
            portalocker.unlock(self._next)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        portalocker.unlock(self._writer)

    def close(self) -> None:
        self._next.close()
        self._writer.close()
