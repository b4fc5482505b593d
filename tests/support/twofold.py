"""A machine with two Gateways, workers, relays and order routers over one PostgreSQL database.

With `QMTL_TEST_TWOFOLD=1` the e2e tests run on such machines. A test still speaks of "the worker": two start,
and a kill ends both. Requests reach the Gateways in turn.
"""

import os
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from temporal.server import free_port
from tests.support.balancer import Balancer
from tests.support.machine import START_LIMIT_S, Machine, wait_for
from tests.support.postgres import postgres_database

IS_TWOFOLD = os.environ.get("QMTL_TEST_TWOFOLD") == "1"

SERVER = "QMTL_TEST_POSTGRES"
"""The environment variable with the URI of the PostgreSQL server of twofold machines."""

of_one_gateway = pytest.mark.skipif(IS_TWOFOLD, reason="each Gateway counts and limits what it serves itself")


def machine_for(home: Path, **options: Any) -> Machine:
    """Return a machine of the form in which the e2e tests run. (Any: what `Machine` takes.)"""
    return TwofoldMachine(home, os.environ[SERVER], **options) if IS_TWOFOLD else Machine(home, **options)


class TwofoldMachine(Machine):
    """`server`: the URI of a PostgreSQL server, on which the machine has a database of its own."""

    def __init__(self, home: Path, server: str, **options: Any) -> None:
        self._stack = ExitStack()
        dsn = self._stack.enter_context(postgres_database(server, f"twofold-{uuid.uuid4().hex}"))
        super().__init__(home, dsn, **options)
        self._gateway_ports = {"gateway": free_port(), "gateway2": free_port()}
        self._balancer: Balancer | None = None

    def start_gateway(self, module: str = "api.gateway", **env: str) -> None:
        self._start("gateway", module, env)
        for name, port in self._gateway_ports.items():
            wait_for(lambda n=name, p=port: self._listens(n, f"http://127.0.0.1:{p}"), name, START_LIMIT_S)  # type: ignore[misc]

    def start_second_gateway(self, module: str = "api.gateway") -> str:
        """The address of the second Gateway, which runs already."""
        return f"http://127.0.0.1:{self._gateway_ports['gateway2']}"

    def kill(self, name: str) -> None:
        if name == "gateway":
            self._stop_balancer()
        for each in self.all_of(name) or [name]:
            super().kill(each)

    def wait_dead(self, name: str) -> None:
        """Wait for the end of one of a pair."""
        wait_for(lambda: self.ended(name), f"death of the {name}")

    def ended(self, name: str) -> bool:
        return any(super(TwofoldMachine, self).ended(each) for each in self.all_of(name) or [name])

    def close(self) -> None:
        self._stop_balancer()
        super().close()
        self._stack.close()

    def _start(self, name: str, module: str, extra: dict[str, str]) -> None:
        """Start those of a pair that do not run."""
        for each in (name, f"{name}2"):
            if each in self._processes and self._processes[each].poll() is None:
                continue
            port = self._gateway_ports.get(each)
            super()._start(each, module, extra | ({"QMTL_GATEWAY__PORT": str(port)} if port else {}))
        if name == "gateway" and self._balancer is None:
            wait_for(self._balance, "free port for the balancer")  # a connection may hold it for a moment

    def _balance(self) -> bool:
        """Start the balancer. Returns whether its port was free."""
        balancer = Balancer(self.port, list(self._gateway_ports.values()))
        try:
            balancer.start()
        except OSError:
            return False
        self._balancer = balancer
        return True

    def _stop_balancer(self) -> None:
        if self._balancer is not None:
            self._balancer.stop()
            self._balancer = None
