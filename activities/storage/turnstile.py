"""A fair queue of SQLite's writers, across all processes.

SQLite serves waiting writers in no particular order: a writer may wait for seconds while others write again
and again. Two file locks make them queue: the holder of the first lock gets the second one next. The kernel
releases both when a process dies.

A process that was stopped keeps its lock, and everyone else would wait until someone continues it. A
`WriterWatch` ends it. PostgreSQL ends such a transaction by itself.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import portalocker
import psutil

from qmtl_sdk.contracts.errors import QmtlError

# The queue's files, as suffixes of the database's name. A writer has the first while it waits for the second.
_NEXT = ".next"
_WRITER = ".writer"

# The kernel's list of locks, which only Linux has.
_LOCKS = Path("/proc/locks")

# States of a process that does nothing until someone continues it.
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)


class WriterTurnstile:
    """Held while a transaction writes. Each thread needs its own, because a lock belongs to an open file."""

    def __init__(self, path: Path) -> None:
        """Open the files beside the database. Raises QmtlError (E_UNAVAILABLE) where that is forbidden."""
        try:
            self._next = path.with_name(path.name + _NEXT).open("w")
            self._writer = path.with_name(path.name + _WRITER).open("w")
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


class WriterWatch:
    """Ends a process that keeps writers out and is stopped, on Linux."""

    def __init__(self, path: Path, after_s: float) -> None:
        """Watch the queue of a database. `after_s`: seconds for which a holder may be stopped."""
        self._files = [path.with_name(path.name + suffix) for suffix in (_WRITER, _NEXT)]
        self._after_s = after_s
        self._stopped: dict[tuple[int, int], float] = {}

    def look(self) -> tuple[int, ...]:
        """End the holders that have stood still for long enough. Returns their pids.

        Call it again and again. A process that has worked between two looks has not stood still. One of
        another user is left alone, except by root.
        """
        now = time.monotonic()
        stopped = {
            (process.pid, turns): process
            for process in self.holders()
            if (turns := _turns_if_stopped(process)) is not None
        }
        self._stopped = {key: self._stopped.get(key, now) for key in stopped}
        ended = list[int]()
        for key, since in self._stopped.items():
            if now - since >= self._after_s:
                with suppress(psutil.Error):
                    stopped[key].kill()
                    ended.append(key[0])
        return tuple(ended)

    def holders(self) -> Iterator[psutil.Process]:
        """Find the other processes that have a lock of the queue: one of each lock at most."""
        with suppress(OSError):  # no such list, no such file: nobody is known to have it
            inodes = {str(file.stat().st_ino) for file in self._files}
            paths = {os.path.realpath(file) for file in self._files}
            for line in _LOCKS.read_text().splitlines():
                match line.split():
                    case [_, "FLOCK", _, _, pid, place, *_] if place.rsplit(":", 1)[-1] in inodes:
                        if int(pid) == os.getpid():
                            continue
                        with suppress(psutil.Error):  # it has ended, or is one that this user may not look at
                            process = psutil.Process(int(pid))
                            # Two file systems may have the inode.
                            if paths & {item.path for item in process.open_files()}:
                                yield process


def watched_files(folder: Path) -> list[Path]:
    """List the files in a folder whose writers queue."""
    return [path.with_suffix("") for path in folder.glob(f"*{_WRITER}")]


def _turns_if_stopped(process: psutil.Process) -> int | None:
    """Return how often a stopped process has had a processor so far; None for one that is not stopped."""
    with suppress(psutil.Error):
        if process.status() in _STOPPED:
            return sum(process.num_ctx_switches())
    return None
