"""A whole QMTL on this machine for one test.

A Temporal server, a worker and a Gateway, each of which can be killed and started again.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import httpx

from activities.settings import GatewaySettings, Settings, TemporalSettings
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk.contracts.access import NewToken, Role, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import CacheSettings
from temporal.server import LocalServer, find_or_install, free_port
from tests.support import ROOT
from tests.support.forked import Forked, Process, started

T = TypeVar("T")

START_LIMIT_S = 240.0
"""Seconds in which a Gateway starts, on a machine that has much else to do."""


def wait_for(condition: Callable[[], T], what: str, limit_s: float = 60.0) -> T:
    """The condition's first true answer. Fails after `limit_s`, saying what was waited for."""
    deadline = time.monotonic() + limit_s
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"no {what} within {limit_s} s"
        time.sleep(0.02)
    return answer


def exit_on_sigterm() -> None:
    """SIGTERM ends a long run as an exception would, so that the servers that it started are stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Machine:
    """Processes by name: temporal, worker, relay, router, gateway.

    A second one of a kind has a name of its own, such as worker2. All end with `close`, by the pids that were
    started. They are forked from a process that has loaded everything, or else (`fork` is False) started as
    users start them, which is what is measured.
    """

    def __init__(
        self, home: Path, dsn: str | None = None, heartbeat_s: float = 2.0, fork: bool = True, **env: str
    ) -> None:
        self.home = home
        self._fork = fork
        self._heartbeat_s = heartbeat_s
        self._env = env
        self.dsn = dsn or f"sqlite:///{home / 'qmtl.db'}"
        base = Settings(_env_file=None)  # type: ignore[call-arg]
        self._tools = base.tools_dir
        self.server = LocalServer(
            find_or_install(base.tools_dir, base.temporal.binary), home / "temporal", free_port(), free_port()
        )
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.second_port = 0
        self.pids: dict[str, int] = {}
        self._processes: dict[str, Process] = {}
        self._started_as: dict[str, tuple[str, dict[str, str]]] = {}

    @property
    def config(self) -> Settings:
        """What a runner on this machine is configured with."""
        return self.settings(self.home / "cache")

    def settings(self, cache: Path) -> Settings:
        temporal = TemporalSettings(address=self.server.address, ui_url=self.server.ui_url)
        return Settings(
            home=self.home,
            gateway=GatewaySettings(url=self.url, database_dsn=self.dsn),
            temporal=temporal,
            cache=CacheSettings(dir=cache),
        )

    def up(self) -> "Machine":
        self.start_temporal()
        self.start_worker()
        self.start_relay()
        self.start_router()
        self.start_gateway()
        wait_for(lambda: self.health()["status"] == "ok", "health", START_LIMIT_S)
        return self

    def health(self) -> dict[str, Any]:
        """What the Gateway says of itself and the others. (Any: JSON.)"""
        found: dict[str, Any] = httpx.get(f"{self.url}/health", trust_env=False, timeout=10).json()
        return found

    def start_temporal(self) -> None:
        """Start the server, again if a connection of another process holds its port for a moment."""
        for left in (2, 1, 0):
            try:
                self.pids["temporal"] = self.server.start()
                return
            except QmtlError:
                if not left:
                    raise

    def start_worker(self, module: str = "temporal.worker", name: str = "worker", **env: str) -> None:
        self._start(name, module, env)

    def start_relay(self, module: str = "activities.events.relay", name: str = "relay") -> None:
        self._start(name, module, {})

    def start_router(
        self, module: str = "activities.brokers.router", name: str = "router", **env: str
    ) -> None:
        self._start(name, module, env)

    def restart(self, name: str) -> None:
        """Start a process that was killed, as it was started before; of a Gateway nobody waits for it."""
        if name == "temporal":
            self.start_temporal()
        else:
            self._start(name, *self._started_as[name])

    def all_of(self, kind: str) -> list[str]:
        """The names of the processes of a kind that were started: the second one's ends in 2."""
        return [name for name in (kind, f"{kind}2") if name in self._processes]

    def start_gateway(self, module: str = "api.gateway", **env: str) -> None:
        """Start it, again if a connection of another process holds its port for a moment."""
        for left in (2, 1, 0):
            self._start("gateway", module, env)
            try:
                wait_for(self._listens, "Gateway", START_LIMIT_S)
                return
            except AssertionError as error:
                if not left or "address already in use" not in str(error):
                    raise

    def start_second_gateway(self, module: str = "api.gateway") -> str:
        """Another Gateway over the same stores; its address."""
        self.second_port = self.second_port or free_port()
        self._start("gateway2", module, {"QMTL_GATEWAY__PORT": str(self.second_port)})
        url = f"http://127.0.0.1:{self.second_port}"
        wait_for(lambda: self._listens("gateway2", url), "second Gateway", START_LIMIT_S)
        return url

    @property
    def urls(self) -> list[str]:
        """The addresses of the Gateways."""
        return [self.url, *([f"http://127.0.0.1:{self.second_port}"] if self.second_port else [])]

    def _start(self, name: str, module: str, extra: dict[str, str]) -> None:
        self._started_as[name] = module, extra
        env = {
            **os.environ,
            "QMTL_HOME": str(self.home),
            "QMTL_DATA__ROOTS": json.dumps([tempfile.gettempdir()]),
            "QMTL_TEMPORAL__ADDRESS": self.server.address,
            "QMTL_TEMPORAL__UI_URL": self.server.ui_url,
            "QMTL_GATEWAY__DATABASE_BACKEND": "sqlite" if self.dsn.startswith("sqlite") else "postgres",
            "QMTL_GATEWAY__DATABASE_DSN": self.dsn,
            "QMTL_GATEWAY__PORT": str(self.port),
            "QMTL_GATEWAY__LEASE_HEARTBEAT_S": str(self._heartbeat_s),
            "PYTHONPATH": str(ROOT),
            **self._env,
            **extra,
        }
        start = Forked if self._fork else started
        self._processes[name] = start(module, env=env, log=self.home / f"{name}.log", folder=self.home)
        self.pids[name] = self._processes[name].pid

    def _listens(self, name: str = "gateway", url: str = "") -> bool:
        assert self._processes[name].poll() is None, (self.home / f"{name}.log").read_text()[-2000:]
        try:
            return httpx.get(f"{url or self.url}/events/jwks", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self, name: str) -> None:
        """SIGKILL, as the machine's owner or its memory limit would."""
        os.kill(self.pids[name], signal.SIGKILL)
        self.wait_dead(name)

    def wait_dead(self, name: str) -> None:
        self._process(name).wait(30)

    def ended(self, name: str) -> bool:
        return self._process(name).poll() is not None

    def _process(self, name: str) -> Process:
        found = self.server.process if name == "temporal" else self._processes.get(name)
        assert found is not None, f"{name} was not started"
        return found

    def client(self, **options: Any) -> GatewayClient:
        return GatewayClient(self.url, self.token(), **options)

    def token(self, role: str = "operator") -> str:
        """The token that the Gateway left for the person who started it."""
        return self.config.local_token_path(role).read_text()

    def issue(self, subject: str, grants: Mapping[str, Role], expires_in_s: int = 600) -> NewToken:
        """Register somebody, and issue a token to them, as an owner who asks for nothing else."""
        with GatewayClient(self.url, self.token("owner")) as owner:
            owner.add_principal("registrar")
            request = TokenRequest(subject="registrar", grants={"*": Role.OWNER})
            registrar = owner.create_token(request).token
        with GatewayClient(self.url, registrar) as owner:
            owner.add_principal(subject)
            wanted = TokenRequest(subject=subject, grants=dict(grants), expires_in_s=expires_in_s)
            return owner.create_token(wanted)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token()}"}

    def database(self) -> Database:
        return open_database(self.dsn)

    def close(self) -> None:
        """End what runs, at once: nobody waits for these processes to give anything back."""
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.server.process is not None:
            self.server.process.kill()
            self.server.process.wait()
