"""Processes of QMTL that start at once: each is forked from one that has loaded everything.

A Gateway or a worker loads for seconds, and the tests start hundreds. A forked process runs its module as
`python -m` does, in an environment and a folder of its own. It has no start and no end of an interpreter:
tests of these go through the command, which starts processes as users do.
"""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest.mock import patch

from api.parts import MALLOC
from tests.support import ROOT

COLUMNS = 200
"""Signs of a line of the forked command's output."""

_LOADED = (
    "api.gateway",
    "temporal.worker",
    "activities.events.relay",
    "activities.brokers.router",
    "qmtl_sdk.runtime.runner",
    "api.cli.commands",
    "api.cli.halt_in_store",
    __name__,
)


class Forked:
    """A process that runs a module. Like `subprocess.Popen`, as far as tests need it."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        env: Mapping[str, str],
        log: Path,
        errors: Path | None = None,
        folder: Path = ROOT,
    ) -> None:
        """Start it. Its errors go to the log as well, unless `errors` names another file."""
        process = _server().Process(
            target=_run, args=(module, arguments, dict(env), (log, errors or log), folder), daemon=True
        )
        process.start()
        assert process.pid is not None
        self.pid = process.pid
        self._process = process

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()


Process = Forked | subprocess.Popen[bytes]


def started(module: str, *, env: Mapping[str, str], log: Path, folder: Path) -> "subprocess.Popen[bytes]":
    """Start a process that runs a module, as users do, with the arguments of `Forked`."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**env, **MALLOC},
            cwd=folder,
        )


@functools.cache
def _server() -> ForkServerContext:
    """Start the process that forks. It ends with this one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_LOADED))
    # The heap's settings are read when an interpreter starts, and rich's width when the command is loaded.
    with patch.dict(os.environ, {**MALLOC, "COLUMNS": str(COLUMNS)}):
        forkserver.ensure_running()
    return found


def _run(
    module: str, arguments: Sequence[str], env: Mapping[str, str], logs: Sequence[Path], folder: Path
) -> None:
    """Become the process: its environment, folder, output and arguments."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    for descriptor, log in enumerate(logs, 1):
        with log.open("ab") as output:
            os.dup2(output.fileno(), descriptor)
    # As `python -m` has it: the current folder first, which another fork of this server may not have had.
    sys.path[:0] = [str(folder), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # it runs as `__main__`, which is another
    runpy.run_module(module, run_name="__main__", alter_sys=True)
