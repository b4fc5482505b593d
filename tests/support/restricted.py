"""Workflows that do what no workflow may do. In a module of their own, as workflows are."""

import random
import time
import uuid
from datetime import datetime
from pathlib import Path

from temporalio import workflow

CALLS = {
    "clock": lambda: time.time(),
    "date": lambda: datetime.now(),
    "random": lambda: random.random(),
    "uuid": lambda: uuid.uuid1(),
    "open": lambda: open("/etc/hostname"),  # noqa: SIM115 - it is refused
    "read": lambda: Path("/etc/hostname").read_text(),
    "sleep": lambda: time.sleep(0),
}


@workflow.defn
class Restricted:
    @workflow.run
    async def run(self, call: str) -> str:
        return str(CALLS[call]())
