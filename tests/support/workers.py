"""Worker processes over the stores of a stage."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.served import Served, served, until

LIMIT_S = 240.0  # a process starts slowly on a machine that does other things


class Workers:
    """Worker processes over the stores of a stage; killed at the end."""

    def __init__(self, stage: Served, home: Path) -> None:
        self._stage = stage
        self._home = home
        self._started: list[subprocess.Popen[bytes]] = []

    async def start(self, path: str) -> "subprocess.Popen[bytes]":
        """Start a worker of the code in a folder, and wait until it is ready."""
        env = {
            **os.environ,
            "PYTHONPATH": path,
            "QMTL_HOME": str(self._home),
            "QMTL_TEMPORAL__ADDRESS": self._stage.client.service_client.config.target_host,
        }
        log = self._home / f"worker-{len(self._started)}.log"
        process = await asyncio.to_thread(self._start, log, env)
        self._started.append(process)

        async def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return "worker: ready" in log.read_text()

        await until(ready, "worker", LIMIT_S)
        return process

    def _start(self, log: Path, env: dict[str, str]) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "temporal.worker"]
        with log.open("wb") as output:
            return subprocess.Popen(command, stdout=output, stderr=output, env=env, cwd=self._home)

    @staticmethod
    def kill(process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self._started:
            self.kill(process)


@asynccontextmanager
async def workers(home: Path, history_limit: int | None = None) -> AsyncIterator[tuple[Served, Workers]]:
    async with served(home, history_limit=history_limit, worker=False) as stage:
        found = Workers(stage, home)
        try:
            yield stage, found
        finally:
            found.close()
