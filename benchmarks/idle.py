"""What an idle stack takes of a core, Temporal aside: the processes that `qmtl up` starts, with one world."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import Settings
from qmtl_sdk.runtime.embedded import StackRecord
from tests.support.worlds import POLICY, world

SETTLED_S = 30.0
SECONDS = 90.0
LIMIT_PERCENT = 2.0


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, stack(Path(folder)) as record:
        with GatewayClient.configured(record.gateway_url, Settings(home=Path(folder))) as client:
            client.create_world(world(), POLICY)
        processes = {
            name: psutil.Process(part.pid) for name, part in record.processes().items() if name != "temporal"
        }
        time.sleep(SETTLED_S)
        began, before = time.perf_counter(), {name: busy_s(process) for name, process in processes.items()}
        time.sleep(SECONDS)
        seconds = time.perf_counter() - began
        percent = {
            name: 100 * (busy_s(process) - before[name]) / seconds for name, process in processes.items()
        }
        total = sum(percent.values())
        yield {
            "workload": "an idle stack, Temporal aside",
            "peer": "one core",
            "seconds": round(seconds),
            **{f"{name}_percent": round(value, 2) for name, value in percent.items()},
            "percent": round(total, 2),
            "limit_percent": LIMIT_PERCENT,
            "ratio_limit": round(total / LIMIT_PERCENT, 3),
            "load": round(os.getloadavg()[0], 1),
        }


def busy_s(process: psutil.Process) -> float:
    """The seconds of a core that a process has taken, with what it waited for the kernel."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def stack(home: Path) -> Iterator[StackRecord]:
    """A stack of its own in this folder, started and stopped as users do."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("QMTL_")}
    environment["QMTL_HOME"] = str(home)

    def qmtl(*words: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "api.cli", *words], env=environment, check=True, stdout=subprocess.DEVNULL
        )

    try:
        qmtl("up")
        yield StackRecord.read(home)
    finally:
        qmtl("down")
