"""A local Temporal server: find or install it, start it, wait until it is ready, stop it.

The executable is the first of these: the one that `temporal.binary` names, one on PATH, one in the tools
folder, the SDK's download into that folder, and `go install`. The settings below were measured: the default
of 20 polls a second costs 50 ms per task, and SQLite without WAL costs half the throughput.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from qmtl_sdk.contracts.errors import QmtlError

# Newer tags have a replace line in go.mod, which go install refuses.
GO_MODULE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"

# Polls a second; with the default of 20 every task costs 50 ms.
_DYNAMIC = ("history.transferProcessorMaxPollRPS=2000", "history.timerProcessorMaxPollRPS=2000")

# Events of a run after which the server suggests to continue as new; its default is 4096.
_HISTORY_LIMIT = "limit.historyCount.suggestContinueAsNew"

# Write-ahead log: without it, half the throughput.
_PRAGMAS = ("journal_mode=wal", "synchronous=normal")

# Seconds for the download, for the build with Go, and for the server's start.
_DOWNLOAD_LIMIT_S = 60
_BUILD_LIMIT_S = 1200
_READY_LIMIT_S = 60


def find_or_install(tools: Path, named: Path | None = None) -> Path:
    """Return the server's executable; install it if there is none.

    Raises QmtlError: E_TEMPORAL_MISSING, which says what was tried.
    """
    if named is not None:
        if not os.access(named, os.X_OK):
            raise QmtlError(
                "E_TEMPORAL_MISSING",
                f"temporal.binary names {named}, which is not executable",
                "correct temporal.binary or QMTL_TEMPORAL__BINARY",
            )
        return named
    found = shutil.which("temporal") or _cached(tools)
    if found:
        return Path(found)
    tools.mkdir(parents=True, exist_ok=True)
    go = shutil.which("go")
    # The download is tried first: building takes minutes, and a refused download a second.
    failure = _run([sys.executable, "-m", "temporal.download", str(tools)], _DOWNLOAD_LIMIT_S)
    if not _cached(tools) and go:
        print(
            "building the Temporal server with go install (some minutes, once) …", file=sys.stderr, flush=True
        )
        failure = _run([go, "install", GO_MODULE], _BUILD_LIMIT_S, GOBIN=str(tools / "bin"))
    found = _cached(tools)
    if not found:
        raise QmtlError(
            "E_TEMPORAL_MISSING",
            f"no Temporal server: not on PATH, no download ({failure}){'' if go else ', no go'}",
            "install the temporal command, or Go, or name the executable in QMTL_TEMPORAL__BINARY",
        )
    return Path(found)


def _cached(tools: Path) -> str | None:
    for pattern in ("bin/temporal", "temporal", "temporal*"):
        for path in sorted(tools.glob(pattern)):
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


def _run(command: list[str], limit_s: float, **env: str) -> str:
    """Run a command. Returns the last line of its output."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_s, env={**os.environ, **env}
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {limit_s:g} s"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:200] if lines else f"exit code {done.returncode}"


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class LocalServer:
    """One server with its data in `folder`. It outlives this process; `stop_process` stops it by its pid."""

    def __init__(
        self, binary: Path, folder: Path, port: int, ui_port: int, namespace: str = "default"
    ) -> None:
        self.port = port
        self.ui_port = ui_port
        self._binary = binary
        self._folder = folder
        self._namespace = namespace
        self.history_limit: int | None = None  # events; None is the server's default
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Host and port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def ui_url(self) -> str:
        """Address of the Temporal UI."""
        return f"http://127.0.0.1:{self.ui_port}"

    @property
    def log(self) -> Path:
        """The file that the server writes its log to."""
        return self._folder / "temporal.log"

    def start(self) -> int:
        """Start the server, wait until it is ready, and return its pid. Raises QmtlError (E_STACK)."""
        process = self.launch()
        deadline = time.monotonic() + _READY_LIMIT_S
        while not self.is_ready():
            if process.poll() is not None:
                raise QmtlError(
                    "E_STACK",
                    f"the Temporal server ended with code {process.returncode} while it started",
                    f"its log: {self.log}",
                )
            if time.monotonic() > deadline:
                process.kill()
                raise QmtlError(
                    "E_STACK",
                    f"the Temporal server was not ready within {_READY_LIMIT_S} s",
                    f"its log: {self.log}",
                )
            time.sleep(0.05)
        return process.pid

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start the server without waiting for it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        command = [
            str(self._binary),
            "server",
            "start-dev",
            "--ip",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--ui-port",
            str(self.ui_port),
            "--namespace",
            self._namespace,
        ]
        command += ["--db-filename", str(self._folder / "temporal.db"), "--log-level", "warn"]
        command += [part for pragma in _PRAGMAS for part in ("--sqlite-pragma", pragma)]
        dynamic = list(_DYNAMIC)
        if self.history_limit is not None:
            dynamic.append(f"{_HISTORY_LIMIT}={self.history_limit}")
        command += [part for value in dynamic for part in ("--dynamic-config-value", value)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return self.process

    def is_ready(self) -> bool:
        """Whether the server reports that it is healthy."""
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", self.port)) != 0:
                return False
        health = [str(self._binary), "operator", "cluster", "health", "--address", self.address]
        return "SERVING" in subprocess.run(health, capture_output=True, text=True).stdout


def stop_process(pid: int, started: float | None = None, limit_s: float = 10.0) -> bool:
    """Stop a process: terminate it, wait `limit_s` seconds, then kill it.

    Returns False if there is no such process, or if the pid now belongs to one that was created at another
    time than `started` (seconds since 1970).
    """
    try:
        process = psutil.Process(pid)
        if started is not None and abs(process.create_time() - started) > 1:
            return False
        process.terminate()
        if not _ends_within(limit_s, process):
            process.kill()
            _ends_within(limit_s, process)
    except psutil.NoSuchProcess:
        return False
    return True


def _ends_within(limit_s: float, process: psutil.Process) -> bool:
    """Return whether a process ends in time.

    One that ended stays as a zombie until its parent collects it: process 1 of a container may never do that.
    """
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        with suppress(psutil.TimeoutExpired):
            process.wait(0.02)
            return True
        with suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
    return False


if __name__ == "__main__":  # install the server ahead of time and print its path
    from activities.settings import settings

    try:
        print(find_or_install(settings().tools_dir, settings().temporal.binary))
    except QmtlError as error:
        sys.exit(f"temporal: {error}")
