"""The supervisor of the embedded stack: starts again, at the same addresses, what has died.

1. Every second it looks at the processes of the stack's record.
2. What is dead is started under the lock of the stack, so that neither `qmtl up` nor `qmtl down` acts at the
   same time. Where they hold the lock, it looks again later.
3. A process is started at once after a death, then after 1, 2, 3 … seconds. One that goes on dying is started
   once a minute, and named with the last line of its log in the record.
4. It ends a process that keeps the writers of a SQLite file out and is stopped for 30 s: all others wait for
   it.
5. It ends when the record names another supervisor, or none: the stack's home is gone then.

It keeps no state that the next supervisor would need. `python -m api.supervisor` is started by `qmtl up`.
"""

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from activities import end_loading
from activities.settings import settings
from activities.storage.turnstile import WriterWatch
from api.parts import StackParts
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.embedded import PROCESSES, ProcessRecord, StackRecord

_LOOK_S = 1.0
"""Seconds between two looks at the processes."""
_STABLE_S = 10.0
"""Seconds after which a process counts as started well."""
_NAMED_AFTER = 3
"""Starts in a row without a good one after which the record names the process."""
_GIVEN_UP_AFTER = 6
"""Starts in a row without a good one after which the pauses become long."""
_LONG_PAUSE_S = 60.0
"""Seconds between two starts of a process that was given up."""
_STOPPED_FOR_S = 30.0
"""Seconds for which a process that keeps writers out may be stopped, as in PostgreSQL."""
_WATCH_EVERY_S = 5.0
"""Seconds between two looks at who writes."""
_RESTARTED = tuple(name for name in PROCESSES if name != "supervisor")
"""The parts that are started again, in the order in which they start."""


@dataclass
class Restarts:
    """When one part may be started again: the starts in a row that were not good ones decide."""

    count: int = 0
    due_at: float = 0.0
    dead: ProcessRecord | None = None

    def is_due(self, part: ProcessRecord, now: float) -> bool:
        """Whether a dead part is to be started now. `now` is monotonic."""
        if part != self.dead:  # a death that was not seen before
            self.dead = part
            if time.time() - part.created >= _STABLE_S:
                self.count = 0
            self.due_at = now + self._pause_s
        return now >= self.due_at

    def add(self, now: float) -> None:
        """Count a start. The next one is due after a pause, also where this one fails."""
        self.count += 1
        self.due_at = now + self._pause_s

    @property
    def _pause_s(self) -> float:
        return float(self.count) if self.count < _GIVEN_UP_AFTER else _LONG_PAUSE_S

    @property
    def named(self) -> bool:
        """Whether the part has not started well for so often that the record names it."""
        return self.count >= _NAMED_AFTER


class Supervisor:
    """Watches the parts of one stack."""

    def __init__(self, parts: StackParts) -> None:
        self._parts = parts
        self._restarts = {name: Restarts() for name in _RESTARTED}
        self._watches: dict[Path, WriterWatch] = {}
        self._watched_at = 0.0

    def run(self) -> None:
        """Work until the stack has another supervisor, or none."""
        with self._parts.lock():
            pass  # `up`, which started this process, has written the record when it releases the lock
        while self._is_own(self._parts.read()):
            for look in (self._look, self._look_at_writers):
                try:
                    look()
                except Exception as error:  # a full disk, a broken executable: what else runs is watched
                    _print(f"cannot act: {' '.join(str(error).split())}")
            time.sleep(_LOOK_S)

    @staticmethod
    def _is_own(stack: StackRecord) -> bool:
        return stack.supervisor is not None and stack.supervisor.pid == os.getpid()

    def _look(self) -> None:
        _collect_children()
        stack = self._parts.read()
        if not self._due(stack) and stack.faults.keys() == self._named(stack):
            return
        with self._parts.try_lock() as locked:
            stack = self._parts.read()
            if not locked or not self._is_own(stack):
                return
            for name in self._due(stack):
                self._restarts[name].add(time.monotonic())
                try:
                    stack = self._parts.start(name, stack)
                    _print(f"the {name} had died; started it as pid {getattr(stack, name).pid}")
                except (QmtlError, OSError) as error:
                    _print(f"the {name} cannot be started: {' '.join(str(error).split())}")
            faults = {name: self._parts.last_line(name) for name in self._named(stack)}
            if faults != stack.faults:
                self._parts.write(stack.model_copy(update={"faults": faults}))

    def _look_at_writers(self) -> None:
        if time.monotonic() - self._watched_at < _WATCH_EVERY_S:
            return
        self._watched_at = time.monotonic()
        for path in self._parts.sqlite_files():
            for pid in self._watches.setdefault(path, WriterWatch(path, _STOPPED_FOR_S)).look():
                _print(f"process {pid} was stopped and kept writers of {path.name} out; ended it")

    def _due(self, stack: StackRecord) -> list[str]:
        """List the dead parts that are to be started now."""
        now = time.monotonic()
        return [
            name
            for name in _RESTARTED
            if (part := getattr(stack, name)) is not None
            and not part.alive
            and self._restarts[name].is_due(part, now)
        ]

    def _named(self, stack: StackRecord) -> set[str]:
        """List the parts that the record names: they have not started well for some time."""
        return {
            name
            for name, restarts in self._restarts.items()
            if restarts.named and not _runs_well(getattr(stack, name))
        }


def _runs_well(part: ProcessRecord | None) -> bool:
    return part is not None and part.alive and time.time() - part.created >= _STABLE_S


def _collect_children() -> None:
    """Collect children that have ended, which would stay as zombies."""
    with suppress(ChildProcessError):  # there is none
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _print(line: str) -> None:
    print(f"supervisor: {line}", flush=True)


def main() -> None:
    """Supervise the stack of this configuration's home; exit with 1 where the configuration is invalid."""
    end_loading()
    try:
        Supervisor(StackParts(settings())).run()
    except QmtlError as error:
        print(f"supervisor: {error}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
