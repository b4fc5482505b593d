"""Credentials that an exchange refuses are a fault that everybody may read; they themselves are nowhere."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx

from activities.fence.acceptance import OrderAcceptance
from activities.fence.reconciliations import SqlReconciliations
from activities.order_settings import OrdersSettings
from activities.storage.heartbeats import processes
from tests.chaos.spot_server import SECRET
from tests.support import ROOT
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.spot import ACCOUNT, kind_spot

# The exchange repeats the key in its answer.
PLANTED = {"SPOT_KEY": "planted-and-wrong-5d0c", "SPOT_SECRET": SECRET}


def test_no_credential_is_in_a_log_a_store_a_page_or_the_configuration(tmp_path: Path) -> None:
    with kind_spot(tmp_path) as spot:
        env = {
            **PLANTED,
            "QMTL_ORDERS__LIVE_BROKER": "ccxt",
            "QMTL_ORDERS__LIVE_ACCOUNT": ACCOUNT,
            "QMTL_ORDERS__BROKER_OPTIONS": json.dumps(spot.options()),
            "QMTL_ORDERS__RECONCILE_EVERY_S": "0.5",
        }
        machine = Machine(tmp_path, None, 2.0, **env)
        with closing(machine), closing(machine.database()) as database:
            desk = Desk(database)
            desk.apply("dryrun")
            desk.apply("live")
            order = desk.order(desk.session(domain="live"), desk.epoch, symbol="BTC", execution_domain="live")
            acceptance = OrderAcceptance(database, OrdersSettings(live_account=ACCOUNT))
            assert [item.accepted for item in acceptance.publish([order], desk.caller)] == [True]
            machine.start_router()

            def fault() -> str:
                return next((item.fault for item in processes(database) if item.fault), "")

            assert "binance refuses the credentials" in wait_for(fault, "a fault of the router")
            machine.start_temporal()
            machine.start_gateway()
            found = SqlReconciliations(database).newest(ACCOUNT)
            texts = {
                "health": json.dumps(machine.health()),
                "page": httpx.get(f"{machine.url}/status", headers=machine.headers, trust_env=False).text,
                "configuration": _config(tmp_path, env),
                "reconciliation": found.model_dump_json() if found else "",
            }
            assert "binance refuses the credentials" in texts["health"]
            assert "orders.broker_options.secret_env" in texts["configuration"]
    files = [file for file in tmp_path.rglob("*") if file.is_file() and file.name != "spot.jsonl"]
    texts |= {file.name: file.read_bytes().decode(errors="replace") for file in files}
    assert "router.log" in texts
    assert "refuses the credentials" in texts["router.log"]
    assert [name for name, text in texts.items() if any(value in text for value in PLANTED.values())] == []


def _config(home: Path, env: dict[str, str]) -> str:
    """What `qmtl config show` prints."""
    command = [sys.executable, "-c", "from api.cli import main; main()", "config", "show", "-o", "json"]
    given = {**os.environ, **env, "QMTL_HOME": str(home), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=given, cwd=home, capture_output=True, text=True, check=True).stdout
