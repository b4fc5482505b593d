"""The runner's name, which identifies the holder of a compute lease.

A process locks a file that holds its name. When the process dies, the name stays in the file and the lock is
released. The next process that submits the same strategy to the same world reads the name, and so takes over
the lease without waiting for its timeout.
"""

import os
import socket
import uuid
from pathlib import Path
from types import TracebackType

import portalocker

from qmtl_sdk.contracts.canonical import hash_parts


class RunnerName:
    """Holds the name for one submission. A concurrent second process gets a name of its own."""

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

    def clear(self) -> None:
        """Remove the name from the file, so that the next submission uses a new one."""
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
