"""The embedded stack: Temporal, worker, relay, order router, Gateway and supervisor on this machine.

They outlive the command that started them. `up` starts what does not run and leaves the rest; the supervisor
starts again what dies. One file records the processes with their creation times, so that `down` never stops a
process that got an old pid.
"""

import time
from collections.abc import Mapping

import psutil

from activities.settings import Settings
from api.parts import StackParts, part_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.embedded import PROCESSES, ProcessRecord, StackRecord, processes_submissions
from temporal.server import free_port, stop_process

_READY_LIMIT_S = 90.0
"""Seconds in which all parts must be ready; a first start also compiles bytecode."""
_STOP_ORDER = PROCESSES[::-1]
"""What `down` stops: first what would start the others again, then faces first."""
_WAITED_FOR = tuple(name for name in PROCESSES if name not in ("temporal", "supervisor"))
"""The parts that `up` waits for after it has started them."""


class EmbeddedStack:
    """Starts and stops the processes of a local stack."""

    def __init__(self, config: Settings) -> None:
        self._config = config
        self._parts = StackParts(config)

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
        with self._parts.lock():
            stack = self._temporal(self._parts.read())
            gateway_dead = not (stack.gateway and stack.gateway.alive)
            started: dict[str, int] = {}
            for name in ("worker", "relay", "router"):
                part: ProcessRecord | None = getattr(stack, name)
                if not (part and part.alive):
                    started[name] = self._log_size(name)
                    stack = self._parts.start(name, stack)
            if gateway_dead:
                port = self._config.gateway.port or _port(stack.gateway)
                url = f"http://{self._config.gateway.host}:{port}"
                stack = self._parts.start("gateway", stack.model_copy(update={"gateway_url": url}))
            self._wait(stack, started)
            if not (stack.supervisor and stack.supervisor.alive):
                stack = self._parts.start("supervisor", stack)
            return stack

    def down(self) -> list[str]:
        """Stop all parts, the supervisor first; return the names of those that ran. Data is kept."""
        with self._parts.lock():
            stack = self._parts.read()
            stopped = []
            for name in _STOP_ORDER:
                part: ProcessRecord | None = getattr(stack, name)
                if part is not None and part.alive and stop_process(part.pid, part.created):
                    stopped.append(name)
            return stopped

    def _temporal(self, stack: StackRecord) -> StackRecord:
        given = self._config.temporal
        if given.address:
            return self._parts.write(
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
        ui_port = ui_port if ui_port and _free(ui_port) else free_port()
        addresses = {
            "temporal_address": f"127.0.0.1:{_port(stack.temporal)}",
            "temporal_ui": f"http://127.0.0.1:{ui_port}",
        }
        stack = stack.model_copy(update=addresses)
        server = self._parts.temporal_server(stack)
        part = part_of(server.start(), server.port)
        return self._parts.write(stack.model_copy(update={"temporal": part}))

    def _log_size(self, name: str) -> int:
        log = self._parts.log(name)
        return log.stat().st_size if log.exists() else 0

    def _wait(self, stack: StackRecord, started: Mapping[str, int]) -> None:
        """Wait until the processes in `started` are ready, and the Gateway is healthy.

        `started` is how long each log was before. A process is ready when it has written so.
        """
        deadline = time.monotonic() + _READY_LIMIT_S
        while True:
            for name in _WAITED_FOR:
                part: ProcessRecord | None = getattr(stack, name)
                if part is not None and not part.alive:
                    raise QmtlError(
                        "E_STACK",
                        f"the {name} ended while it started: {self._parts.last_line(name)}",
                        f"its log: {self._parts.log(name)}",
                    )
            ready = all(self._ready(name, before) for name, before in started.items())
            if ready and processes_submissions(stack.gateway_url):
                return
            if time.monotonic() > deadline:
                raise QmtlError(
                    "E_STACK",
                    f"the stack was not ready within {_READY_LIMIT_S:g} s",
                    f"its logs are in {self._parts.home}",
                )
            time.sleep(0.05)

    def _ready(self, name: str, before: int) -> bool:
        with self._parts.log(name).open("rb") as log:
            log.seek(before)
            return f"{name}: ready" in log.read().decode(errors="replace")


def _port(earlier: ProcessRecord | None) -> int:
    """Return the earlier port if it is free, so that links and clients stay valid; otherwise any."""
    return earlier.port if earlier is not None and earlier.port and _free(earlier.port) else free_port()


def _free(port: int) -> bool:
    return all(
        connection.laddr.port != port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr
    )
