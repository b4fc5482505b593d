"""Who computes: a name that a runner keeps while its process lives and that the next process of the same work takes over.

A lease belongs to a runner's name. A process that dies leaves its name behind in a file, and its lock on that file goes with it; the next process that submits the same
strategy to the same world takes the name, and with it the lease, without waiting for the lease to time out.
"""

import os
import socket
import uuid
from pathlib import Path
from types import TracebackType

import portalocker

from qmtl_sdk.contracts.canonical import hash_parts


class RunnerName:
    """Held for one submission. A second process at the same time gets a name of its own."""

    def __init__(self, folder: Path, world_id: str, strategy_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / hash_parts(world_id, strategy_id).removeprefix("blake3:")[:32]
        self._file = path.open("a+")
        fresh = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            portalocker.lock(self._file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
        except portalocker.LockException:
            self.value = fresh
            return
        self._file.seek(0)
        self.value = self._file.read().strip() or fresh
        self._write(self.value)

    def forget(self) -> None:
        """The work is done: the next submission is another's."""
        self._write("")

    def _write(self, text: str) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(text)
        self._file.flush()

    def __enter__(self) -> "RunnerName":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
