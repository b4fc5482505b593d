"""The embedded stack: Temporal, worker, relay, order router and Gateway as processes on this machine.

They outlive the command that started them. `up` starts what does not run and leaves the rest. One file
records the processes with their creation times, so that `down` never stops a process that got an old pid.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import portalocker
import psutil

from activities.settings import Settings
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import ENV, PREFIX, config_file
from qmtl_sdk.runtime.embedded import STACK_FILE, ProcessRecord, StackRecord
from temporal.server import LocalServer, find_or_install, free_port, stop_process

_READY_LIMIT_S = 90.0
"""Seconds in which all parts must be ready; a first start also compiles bytecode."""
_STOP_ORDER = ("gateway", "router", "relay", "worker", "temporal")
"""What `down` stops, faces first."""
_MODULES = {
    "gateway": "api.gateway",
    "worker": "temporal.worker",
    "relay": "activities.events.relay",
    "router": "activities.brokers.router",
}
"""The module that each part of the stack runs."""
# One heap for all threads, and freed memory is returned: glibc's defaults keep tens of megabytes unused.
MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


class EmbeddedStack:
    """Starts and stops the processes of a local stack."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._home = config.home

    def up(self) -> StackRecord:
        """Start the parts that do not run; return when submissions can be processed.

        Raises QmtlError: E_TEMPORAL_MISSING, E_STACK, E_CONFIG.
        """
        self._config.require_profile()
        if self._config.gateway.url:
            raise QmtlError(
                "E_CONFIG",
                f"gateway.url names a Gateway already: {self._config.gateway.url}",
                "remove it to use the embedded stack",
            )
        with self._lock():
            stack = self._temporal(StackRecord.read(self._home))
            gateway_dead = not (stack.gateway and stack.gateway.alive)
            started: dict[str, int] = {}
            for name in ("worker", "relay", "router"):
                part: ProcessRecord | None = getattr(stack, name)
                if not (part and part.alive):
                    started[name] = self._log_size(name)
                    stack = self._write(stack.model_copy(update={name: self._start(name, stack, {})}))
            if gateway_dead:
                port = self._config.gateway.port or _port(stack.gateway)
                host = self._config.gateway.host
                gateway = self._start("gateway", stack, {"GATEWAY__PORT": str(port), "GATEWAY__HOST": host})
                stack = self._write(
                    stack.model_copy(
                        update={
                            "gateway": gateway.model_copy(update={"port": port}),
                            "gateway_url": f"http://{host}:{port}",
                        }
                    )
                )
            self._wait(stack, started)
            return stack

    def down(self) -> list[str]:
        """Stop all parts, the Gateway first; return the names of those that ran. Data is kept."""
        with self._lock():
            stack = StackRecord.read(self._home)
            stopped = []
            for name in _STOP_ORDER:
                part: ProcessRecord | None = getattr(stack, name)
                if part is not None and part.alive and stop_process(part.pid, part.created):
                    stopped.append(name)
            return stopped

    def _temporal(self, stack: StackRecord) -> StackRecord:
        given = self._config.temporal
        if given.address:
            return self._write(
                stack.model_copy(
                    update={
                        "temporal": None,
                        "temporal_address": given.address,
                        "temporal_ui": given.ui_url or "",
                    }
                )
            )
        if stack.temporal and stack.temporal.alive:
            return stack
        # An address without an embedded server is one that was configured then, and names no port of ours.
        ui_port = int(stack.temporal_ui.rpartition(":")[2]) if stack.temporal and stack.temporal_ui else 0
        binary = find_or_install(self._config.tools_dir, given.binary)
        server = LocalServer(
            binary,
            self._home / "temporal",
            _port(stack.temporal),
            ui_port if ui_port and _free(ui_port) else free_port(),
            given.namespace,
        )
        server.history_limit = given.history_limit
        part = _part(server.start(), server.port)
        return self._write(
            stack.model_copy(
                update={"temporal": part, "temporal_address": server.address, "temporal_ui": server.ui_url}
            )
        )

    def _start(self, name: str, stack: StackRecord, extra: dict[str, str]) -> ProcessRecord:
        settings = {
            "HOME": str(self._home),
            "TEMPORAL__ADDRESS": stack.temporal_address,
            "TEMPORAL__UI_URL": stack.temporal_ui,
            **extra,
        }
        env = {**os.environ, **MALLOC, **{PREFIX + name: value for name, value in settings.items()}}
        file = config_file()
        if file is not None:
            env[ENV] = str(file.resolve())
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", _MODULES[name]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=env,
                cwd=self._home,
            )
        return _part(process.pid)

    def _log(self, name: str) -> Path:
        return self._home / f"{name}.log"

    def _log_size(self, name: str) -> int:
        log = self._log(name)
        return log.stat().st_size if log.exists() else 0

    def _wait(self, stack: StackRecord, started: Mapping[str, int]) -> None:
        """Wait until the processes in `started` are ready, and the Gateway is healthy.

        `started` is how long each log was before. A process is ready when it has written so.
        """
        deadline = time.monotonic() + _READY_LIMIT_S
        while True:
            for name in _MODULES:
                part: ProcessRecord | None = getattr(stack, name)
                if part is not None and not part.alive:
                    raise QmtlError(
                        "E_STACK",
                        f"the {name} ended while it started: {_last_line(self._log(name))}",
                        f"its log: {self._log(name)}",
                    )
            if all(self._ready(name, before) for name, before in started.items()) and _healthy(stack):
                return
            if time.monotonic() > deadline:
                raise QmtlError(
                    "E_STACK",
                    f"the stack was not ready within {_READY_LIMIT_S:g} s",
                    f"its logs are in {self._home}",
                )
            time.sleep(0.05)

    def _ready(self, name: str, before: int) -> bool:
        with self._log(name).open("rb") as log:
            log.seek(before)
            return f"{name}: ready" in log.read().decode(errors="replace")

    def _write(self, stack: StackRecord) -> StackRecord:
        aside = self._home / f"{STACK_FILE}.new"
        aside.write_text(stack.model_dump_json(indent=2))
        os.replace(aside, self._home / STACK_FILE)
        return stack

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Allow one `up` or `down` at a time: two authors who start at once share one stack."""
        self._home.mkdir(parents=True, exist_ok=True)
        with (self._home / "stack.lock").open("w") as file:
            portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE)
            yield


def _healthy(stack: StackRecord) -> bool:
    try:
        return httpx.get(f"{stack.gateway_url}/health", timeout=5.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False  # not listening yet


def _part(pid: int, port: int = 0) -> ProcessRecord:
    try:
        return ProcessRecord(pid=pid, created=psutil.Process(pid).create_time(), port=port)
    except psutil.NoSuchProcess as error:
        raise QmtlError(
            "E_STACK",
            "a process of the stack ended as soon as it was started",
            "qmtl status names the folder with the logs",
        ) from error


def _port(earlier: ProcessRecord | None) -> int:
    """Return the earlier port if it is free, so that links and clients stay valid; otherwise any."""
    return earlier.port if earlier is not None and earlier.port and _free(earlier.port) else free_port()


def _free(port: int) -> bool:
    return all(
        connection.laddr.port != port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    )


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1] if lines else "its log is empty"
