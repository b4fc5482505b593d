"""Find the embedded stack, or start it.

The stack runs in its own processes; this process reads their addresses from the stack's file.
"""

import json
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
from pydantic import ConfigDict

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.runtime.config import Settings

STACK_FILE = "stack.json"

PROCESSES = ("temporal", "worker", "relay", "router", "gateway", "supervisor")
"""The processes of the embedded stack, in the order in which they start."""


class ProcessRecord(Model):
    """A process of the stack. `created` is its creation time, which detects a reused pid."""

    pid: int
    created: float
    port: int = 0

    @property
    def alive(self) -> bool:
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.created) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


class StackRecord(Model):
    """The processes of the embedded stack and their addresses.

    `faults`: the last line of its log, by name, of each process that ends whenever the supervisor starts it.
    A key of a newer version is ignored: a file that could not be read would hide the processes that run.
    """

    model_config = ConfigDict(extra="ignore")

    temporal: ProcessRecord | None = None
    worker: ProcessRecord | None = None
    relay: ProcessRecord | None = None
    router: ProcessRecord | None = None
    gateway: ProcessRecord | None = None
    supervisor: ProcessRecord | None = None
    faults: dict[str, str] = {}
    gateway_url: str = ""
    temporal_address: str = ""
    temporal_ui: str = ""

    @classmethod
    def read(cls, home: Path) -> "StackRecord":
        """Read the record in a stack's folder. Raises QmtlError (E_UNAVAILABLE) where that is forbidden."""
        file = home / STACK_FILE
        try:
            return cls.model_validate_json(file.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):  # no file, or one cut short by a crash
            return cls()
        except OSError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"{file} can't be read: {error.strerror}",
                "use the account that started the stack, or another QMTL_HOME",
            ) from error

    def processes(self) -> dict[str, ProcessRecord]:
        """Return the recorded processes by name; those that were never started are left out."""
        return {name: part for name in PROCESSES if (part := getattr(self, name)) is not None}


def recorded_gateway(config: Settings) -> str | None:
    """Return the configured Gateway's address, else that of the embedded one if its process runs, else None.

    Whatever else has died, a running Gateway answers and can halt a world.
    """
    if config.gateway.url:
        return config.gateway.url
    stack = StackRecord.read(config.home)
    return stack.gateway_url if stack.gateway and stack.gateway.alive else None


def find(config: Settings) -> str | None:
    """Return the configured Gateway's address, else that of the healthy embedded stack, else None."""
    if config.gateway.url:
        return config.gateway.url
    stack = StackRecord.read(config.home)
    parts = (stack.gateway, stack.worker, stack.relay, stack.router)
    if not stack.gateway_url or not all(part is not None and part.alive for part in parts):
        return None  # `start` restarts what is missing
    return stack.gateway_url if processes_submissions(stack.gateway_url) else None


def processes_submissions(gateway_url: str) -> bool:
    """Return whether a Gateway answers, and has the database, Temporal and a worker."""
    try:
        found = httpx.get(f"{gateway_url}/health", timeout=5.0, trust_env=False).json()
        return not {"database", "temporal", "worker"} & found["missing"].keys()
    except (httpx.TransportError, ValueError, KeyError):
        return False


def start(config: Settings) -> str:
    """Start the embedded stack with `qmtl up`; return the Gateway's address.

    Raises QmtlError: the command's own error; E_STACK where its output is unreadable.
    """
    done = subprocess.run(
        [sys.executable, "-m", "api.cli", "up", "-o", "json"],
        stdout=subprocess.PIPE,
        stderr=None,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        answer = json.loads(done.stdout)
        if done.returncode == 0:
            return str(answer["gateway_url"])
        error = answer["error"]
        raise QmtlError(error["code"], error["message"], error["remedy"])
    except (ValueError, KeyError) as error:
        raise QmtlError(
            "E_STACK",
            f"the embedded stack could not be started (exit code {done.returncode})",
            "run qmtl up, which says why",
        ) from error
