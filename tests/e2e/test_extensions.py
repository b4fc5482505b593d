"""A package outside the tree adds a source, a broker, a bus and a metric, and a submission uses all four."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.registry import Registry
from qmtl_sdk.contracts.worlds import Preset
from qmtl_sdk.data import market
from tests.support.machine import Machine, wait_for
from tests.support.twofold import machine_for

ENTRY_POINTS = """
[qmtl.sources]
sine = acme:Sine
[qmtl.brokers]
ledger = acme:open_broker
[qmtl.buses]
noted = acme:open_bus
[qmtl.metrics]
best_bar = acme:best_bar
"""

PACKAGE = '''
from datetime import datetime

import numpy as np

from activities.brokers.broker import Broker, BrokerSettings
from activities.events.bus import BusSettings, SqliteBus
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import OrderReport
from qmtl_sdk.data.bars import NS, Bars, fingerprint, to_ns
from qmtl_sdk.data.market import NewBars
from qmtl_sdk.reports.metrics import Metric

FIRST = to_ns(datetime.fromisoformat("2017-06-01T00:00:00+00:00"))


class Sine:
    """Hourly prices of a sine wave; `options.hours` says how many."""

    def __init__(self, preset):
        self._preset = preset

    def streams(self):
        return ("WAVE",)

    def fingerprint(self, until=None):
        return fingerprint({stream: self.read(stream, end=until) for stream in self._preset.streams})

    def read(self, stream, start=None, end=None):
        hours = np.arange(int(self._preset.options["hours"]))
        bars = Bars(FIRST + hours * 3600 * NS, {"close": 100 + np.sin(hours / 3.0)}, 3600).until(end)
        row = 0 if start is None else int(np.searchsorted(bars.ts, to_ns(start)))
        return bars.rows(row, len(bars))

    def follow(self, stream, after, limit):
        bars = self.read(stream)
        row = 0 if after is None else int(np.searchsorted(bars.closes, after, side="right"))
        return NewBars(bars.rows(row, min(row + limit, len(bars))), earlier=row)


class Ledger(Broker):
    """Fills at the reference price, and writes each order into a file."""

    batch = 100
    time_in_flight_s = 0.0

    def __init__(self, name, path):
        self.name = name
        self._path = path

    def place(self, orders, now):
        with open(self._path, "a") as file:
            for order, _ in orders:
                file.write(order.order_id + "\\n")
        return self.find(orders, now)

    def find(self, orders, now):
        return [
            OrderReport(
                order_id=order.order_id,
                state="filled",
                fills=[
                    Fill(
                        fill_id=order.order_id,
                        quantity=order.quantity,
                        price=order.reference_price,
                        account=self.name,
                    )
                ],
            )
            for order, _ in orders
        ]

    def cancel(self, orders, now):
        pass


def open_broker(settings: BrokerSettings):
    return Ledger(settings.account, settings.options["file"])


class NotedBus(SqliteBus):
    def publish(self, events):
        super().publish(events)
        with open(self.note, "a") as file:
            file.writelines(event.type + "\\n" for event in events)


def open_bus(settings: BusSettings):
    bus = NotedBus(settings.home / "acme.db")
    bus.note = settings.options["file"]
    return bus


best_bar = Metric("largest return of a bar, as a fraction", lambda sample: float(sample.values.max()))
'''

SUBMISSION = """
import sys

import pandas as pd

from qmtl_sdk import Node, Runner, Strategy, StreamInput, TradeOrderPublisherNode
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings

url, token = sys.argv[1:3]
WORLD = {
    "world": "waves",
    "clock": {"replay": {"start": "2017-06-06T00:00:00Z", "speed": 6 * 3600}},
    "data": {"presets": [{
        "name": "waves", "source": "sine", "interval": "1h",
        "streams": {"WAVE": ["WAVE", "price"]}, "options": {"hours": 4000},
    }]},
}
POLICY = {
    "selection": {"gates": {"and": ["best_bar > 0"]}, "score": "sample_days"},
    "gating_policy": {"domains": {"from": "backtest", "to": "dryrun"}, "approvals": {"required": 0}},
}


class Wave(Strategy):
    def setup(self):
        price = StreamInput(tags=["WAVE", "price"], interval="1h", period=3)

        def rising(view):
            held = (view[price].frame["close"].diff() > 0).astype(float)
            return pd.DataFrame({"position": held, "quantity": held.diff() * 10.0})

        position = Node(price, rising, name="position")
        self.add_nodes([position, TradeOrderPublisherNode(position, name="orders")])


with GatewayClient(url, token) as client:
    client.create_world(WORLD, POLICY)
result = Runner.submit(Wave, world="waves")
print(result.metrics["best_bar"], flush=True)
sys.stdin.read()
Runner.shutdown()
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder that looks like site-packages with one installed package."""
    site = tmp_path / "site"
    (site / "acme").mkdir(parents=True)
    (site / "acme" / "__init__.py").write_text(PACKAGE)
    meta = site / "acme-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


@pytest.fixture
def machine(tmp_path: Path, package: Path) -> Iterator[Machine]:
    home = tmp_path / "home"
    home.mkdir()
    found = machine_for(
        home,
        PYTHONPATH=f"{Path(__file__).parents[2]}{os.pathsep}{package}",
        QMTL_ORDERS__DRYRUN_BROKER="ledger",
        QMTL_ORDERS__DRYRUN_ACCOUNT="ledger",
        QMTL_ORDERS__BROKER_OPTIONS=json.dumps({"file": str(tmp_path / "orders.txt")}),
        QMTL_EVENTS__BUS="noted",
        QMTL_EVENTS__BUS_OPTIONS=json.dumps({"file": str(tmp_path / "events.txt")}),
    )
    try:
        yield found.up()
    finally:
        found.close()


def test_a_package_outside_the_tree_adds_a_source_a_broker_a_bus_and_a_metric(
    machine: Machine, package: Path, tmp_path: Path
) -> None:
    script = tmp_path / "wave.py"
    script.write_text(SUBMISSION)
    env = {
        **os.environ,
        "PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{package}",
        "QMTL_HOME": str(machine.home),
        "QMTL_GATEWAY__URL": machine.url,
    }
    runner = subprocess.Popen(
        [sys.executable, str(script), machine.url, machine.token("owner")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=tmp_path,
    )
    try:
        assert runner.stdout is not None
        assert float(runner.stdout.readline()) > 0
        placed = tmp_path / "orders.txt"
        wait_for(lambda: placed.exists() and len(placed.read_text().split()) >= 3, "orders at the broker")
        with machine.client() as client:
            wait_for(lambda: sum(record.state == "filled" for record in client.orders("waves")) >= 3, "fills")
            assert {record.fill.account for record in client.orders("waves") if record.fill} == {"ledger"}
        events = (tmp_path / "events.txt").read_text().split()
        assert {"world.created", "decision_updated"} <= set(events)
    finally:
        errors = runner.communicate("", timeout=60)[1]
    assert runner.returncode == 0, errors


def test_a_package_that_cannot_be_loaded_is_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "acme" / "__init__.py").write_text("import nothing_of_that_name\n")
    monkeypatch.syspath_prepend(package)
    with pytest.raises(QmtlError, match="the metric 'best_bar' of acme cannot be loaded") as caught:
        Registry("qmtl.metrics", "metric", {}).load("best_bar")
    assert caught.value.code == "E_EXTENSION"


def test_a_package_cannot_replace_what_is_built_in(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(package)
    registry = Registry("qmtl.metrics", "metric", {"best_bar": "json:dumps"})
    with pytest.warns(UserWarning, match="acme offers a metric 'best_bar', and there is one already"):
        assert registry.names() == ("best_bar",)
    assert registry.load("best_bar") is json.dumps


BROKEN = """
import numpy as np

from qmtl_sdk.data.bars import NS, Bars
from qmtl_sdk.data.market import NewBars


class Sine:
    def __init__(self, preset):
        if preset.options.get("fails"):
            raise OSError("no route to the exchange")

    def read(self, stream, start=None, end=None):
        return Bars(np.array([2, 1]) * 3600 * NS, {"close": np.ones(2)}, 3600)
"""


def test_faults_of_a_packages_source_are_named(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (package / "acme" / "__init__.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(market, "SOURCES", Registry("qmtl.sources", "data source", {}))
    given = {"name": "waves", "source": "sine", "interval": "1h", "streams": {"WAVE": ["wave"]}}
    with pytest.raises(QmtlError, match="'sine' of waves failed: OSError.*no route") as caught:
        market.market_data(Preset.model_validate({**given, "options": {"fails": True}}))
    assert caught.value.code == "E_EXTENSION"
    unsorted = market.market_data(Preset.model_validate(given))
    with pytest.raises(QmtlError, match="waves/WAVE goes back in time"):
        unsorted.read("WAVE")
    with pytest.raises(QmtlError, match="'sine' of waves failed: AttributeError"):
        unsorted.follow("WAVE", None, 10)
    other = market.market_data(Preset.model_validate({**given, "interval": "1d"}))
    with pytest.raises(QmtlError, match="bars of 3600 s, and the preset says 86400 s"):
        other.read("WAVE")
