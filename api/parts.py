"""The processes of the embedded stack: start one, and record it with its creation time.

The record is the file `stack.json` in the stack's home. Whoever changes it, or starts or stops a process,
holds the lock of the stack.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import portalocker
import psutil

from activities.settings import STARTED_IN, Settings
from activities.storage.dsn import sqlite_file
from activities.storage.turnstile import watched_files
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import ENV, PREFIX, config_file
from qmtl_sdk.runtime.embedded import STACK_FILE, ProcessRecord, StackRecord
from temporal.server import LocalServer, find_or_install

MODULES = {
    "gateway": "api.gateway",
    "worker": "temporal.worker",
    "relay": "activities.events.relay",
    "router": "activities.brokers.router",
    "supervisor": "api.supervisor",
}
"""The module that each part of the stack runs; Temporal is an executable."""
# One heap for all threads, and freed memory is returned: glibc's defaults keep tens of megabytes unused.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}

# Characters of a log's end that are read for its last line, and of the line.
_LOG_END = 8192
_LINE_LENGTH = 500


class StackParts:
    """The parts of the stack in one home."""

    def __init__(self, config: Settings) -> None:
        self.home = config.home
        self._config = config

    def read(self) -> StackRecord:
        """Read the record; an empty one where there is none."""
        return StackRecord.read(self.home)

    def write(self, stack: StackRecord) -> StackRecord:
        """Replace the record. Returns it."""
        aside = self.home / f"{STACK_FILE}.new"
        aside.write_text(stack.model_dump_json(indent=2))
        os.replace(aside, self.home / STACK_FILE)
        return stack

    def start(self, name: str, stack: StackRecord) -> StackRecord:
        """Start one part at the addresses of the record, without waiting for it. Returns the new record.

        Raises QmtlError: E_STACK where it ended at once, E_TEMPORAL_MISSING.
        """
        if name == "temporal":
            process = self.temporal_server(stack).launch()
            port = _port_of(stack.temporal_address)
        else:
            process = self._start_module(name, stack)
            port = _port_of(stack.gateway_url) if name == "gateway" else 0
        return self.write(stack.model_copy(update={name: part_of(process.pid, port)}))

    def temporal_server(self, stack: StackRecord) -> LocalServer:
        """The Temporal server at the addresses of the record. Raises QmtlError (E_TEMPORAL_MISSING)."""
        given = self._config.temporal
        server = LocalServer(
            find_or_install(self._config.tools_dir, given.binary),
            self.home / "temporal",
            _port_of(stack.temporal_address),
            _port_of(stack.temporal_ui),
            given.namespace,
        )
        server.history_limit = given.history_limit
        return server

    def _start_module(self, name: str, stack: StackRecord) -> "subprocess.Popen[bytes]":
        settings = {"HOME": str(self.home)}
        if name != "supervisor":  # it reads the record; an address in its settings would be another server
            settings |= {"TEMPORAL__ADDRESS": stack.temporal_address, "TEMPORAL__UI_URL": stack.temporal_ui}
        if name == "gateway":
            host, _, port = stack.gateway_url.removeprefix("http://").rpartition(":")
            settings |= {"GATEWAY__HOST": host, "GATEWAY__PORT": port}
        env = {**os.environ, **MALLOC, **{PREFIX + key: value for key, value in settings.items()}}
        env.setdefault(STARTED_IN, os.getcwd())
        file = config_file()
        if file is not None:
            env[ENV] = str(file.resolve())
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", MODULES[name]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=env,
                cwd=self.home,
            )

    def sqlite_files(self) -> set[Path]:
        """The SQLite files whose writers queue: those in the home, and the store's, wherever it is."""
        store = sqlite_file(self._config.database_dsn)
        return {*watched_files(self.home), *([store] if store else [])}

    def log(self, name: str) -> Path:
        """The log file of a part."""
        return self.home / "temporal" / "temporal.log" if name == "temporal" else self.home / f"{name}.log"

    def last_line(self, name: str) -> str:
        """Return the last line of a part's log."""
        try:
            with self.log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_END))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except FileNotFoundError:
            lines = []
        return lines[-1][:_LINE_LENGTH] if lines else "its log is empty"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the lock of the stack: two authors who start at once share one stack."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "stack.lock").open("w") as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield

    @contextmanager
    def try_lock(self) -> Iterator[bool]:
        """Hold the lock of the stack if it is free. Gives whether it was."""
        with (self.home / "stack.lock").open("w") as file:
            try:
                portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
            except portalocker.LockException:
                yield False
                return
            yield True


def part_of(pid: int, port: int = 0) -> ProcessRecord:
    """Record a process that was just started. Raises QmtlError (E_STACK) where it has ended."""
    try:
        return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time(), port=port)
    except psutil.NoSuchProcess as error:
        raise QmtlError(
            "E_STACK",
            "a process of the stack ended as soon as it was started",
            "qmtl status names the folder with the logs",
        ) from error


def _port_of(address: str) -> int:
    """Return the port of HOST:PORT or of a URL without a path."""
    return int(address.rpartition(":")[2])
