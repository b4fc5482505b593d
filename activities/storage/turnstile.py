"""A fair queue of SQLite's writers, across all processes.

SQLite serves waiting writers in no particular order: a writer may wait for seconds while others write again
and again. Two file locks make them queue: the holder of the first lock gets the second one next. The kernel
releases both when a process dies.
"""

from pathlib import Path
from types import TracebackType

import portalocker

from qmtl_sdk.contracts.errors import QmtlError


class WriterTurnstile:
    """Held while a transaction writes. Each thread needs its own, because a lock belongs to an open file."""

    def __init__(self, path: Path) -> None:
        """Open the files beside the database. Raises QmtlError (E_UNAVAILABLE) where that is forbidden."""
        try:
            self._next = path.with_name(f"{path.name}.next").open("w")
            self._writer = path.with_name(f"{path.name}.writer").open("w")
        except OSError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"{error.filename} can't be written: {error.strerror}",
                "use an account that may write there; a disk may also be full",
            ) from error

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
        """Close both files."""
        self._next.close()
        self._writer.close()
