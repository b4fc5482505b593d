"""A whole QMTL that the `qmtl` command starts: the embedded stack, its supervisor included."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path

from activities.settings import Settings
from api.parts import StackParts
from qmtl_sdk.runtime.embedded import ProcessRecord
from temporal.server import stop_process
from tests.support.command import Person
from tests.support.machine import Machine, wait_for


class CommandMachine(Machine):
    """`person` types the commands. The processes end with `close`, by the pids in the stack's record."""

    def __init__(self, folder: Path, **env: str) -> None:
        home = folder / "home"
        home.mkdir()
        super().__init__(home, **env)
        self.person = Person(folder, fork=False, QMTL_HOME=str(home), **env)
        self.parts = StackParts(Settings(home=home))
        self._started: list[ProcessRecord] = []

    def up(self) -> "CommandMachine":
        """Start what is dead."""
        done = self.person.types("up")
        assert done.returncode == 0, done.stderr
        stack = self.parts.read()
        self.url, self.server = stack.gateway_url, self.parts.temporal_server(stack)
        return self

    def records(self) -> dict[str, ProcessRecord]:
        """The processes of the stack's record, by name."""
        found = self.parts.read().processes()
        self._started += [part for part in found.values() if part not in self._started]
        return found

    def kill_all(self, names: Iterable[str]) -> None:
        """SIGKILL to all of them at once; return when they are dead."""
        records = self.records()
        for name in names:
            os.kill(records[name].pid, signal.SIGKILL)
        for name in names:
            wait_for(lambda name=name: not records[name].alive, f"death of the {name}")  # type: ignore[misc]

    def log_of(self, name: str) -> str:
        """What a process has written into its log."""
        file = self.parts.log(name)
        return file.read_text(errors="replace") if file.exists() else ""

    def close(self) -> None:
        """End the supervisor first, which would start the others again."""
        found = self.records()
        for part in [found.get("supervisor"), *self._started]:
            if part is not None:
                stop_process(part.pid, part.created)
