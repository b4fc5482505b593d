"""The spot exchange in a process of its own, and the options with which the broker `ccxt` reaches it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from activities.brokers.broker import Broker, BrokerSettings, open_broker
from qmtl_sdk.contracts.domains import Domain
from temporal.server import free_port
from tests.chaos.spot_server import KEY, SECRET
from tests.support import ROOT
from tests.support.machine import wait_for

CREDENTIALS = {"SPOT_KEY": KEY, "SPOT_SECRET": SECRET}
"""The environment that the options name."""

ACCOUNT = "spot"


class Spot:
    """The exchange at a port, with what it has written in `file`. It can be killed and started again."""

    def __init__(self, folder: Path, seed: int = 1, *flags: str) -> None:
        self.port = free_port()
        self.file = folder / "spot.jsonl"
        self._log = folder / "spot.log"
        self._args = [str(self.port), str(seed), str(self.file), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> "Spot":
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "tests.chaos.spot_server", *self._args]
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        wait_for(self._answers, "spot exchange")
        return self

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def control(self, what: str) -> Any:
        """Ask what no client may: `all`, `kind`, `late`. (Any: JSON.)"""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/stand-in/{what}", trust_env=False, timeout=10)
        return json.loads(answer.text)

    def options(self, **more: Any) -> dict[str, Any]:
        return {
            "exchange": "binance",
            "symbols": "BTC=BTC/USDT,ETH=ETH/USDT",
            "sandbox": False,
            "order_type": "limit",
            "rate_limit_ms": 30,
            "time_in_flight_s": 2.0,
            "api_key_env": "SPOT_KEY",
            "secret_env": "SPOT_SECRET",
            "url": f"http://127.0.0.1:{self.port}",
            **more,
        }

    def broker(self, **more: Any) -> Broker:
        os.environ.update(CREDENTIALS)
        settings = BrokerSettings(domain=Domain.DRYRUN, account=ACCOUNT, options=self.options(**more))
        return open_broker("ccxt", settings)

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()[-2000:]
        try:
            return bool(self.control("all"))
        except httpx.TransportError:
            return False


@contextmanager
def kind_spot(folder: Path) -> Iterator[Spot]:
    """An exchange that cuts nothing, and lists each trade at once and once."""
    spot = Spot(folder, 1, "kind")
    try:
        yield spot.start()
    finally:
        spot.kill()
