"""Run the `qmtl` command as a person would."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import ROOT
from tests.support.forked import COLUMNS, Forked

# Seconds that a command may take.
_LIMIT_S = 200.0


class Person:
    """Types commands in a folder of their own: those of this source tree, or of the program `qmtl`.

    With `fork`, commands of the source tree are forked from a process that has loaded them. Otherwise they
    start as users start them, which takes a second.
    """

    def __init__(self, folder: Path, qmtl: Path | None = None, fork: bool = True, **env: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QMTL_GATEWAY")}
        self.folder = folder
        self._fork = fork and qmtl is None
        self._env = {**kept, "COLUMNS": str(COLUMNS), **env}
        if qmtl is None:
            self._command = [sys.executable, "-m", "api.cli"]
            self._env["PYTHONPATH"] = str(ROOT)
        else:
            self._command = [str(qmtl)]
            for name in ("VIRTUAL_ENV", "PYTHONPATH"):
                self._env.pop(name, None)

    def types(self, *words: str) -> "subprocess.CompletedProcess[str]":
        done = self._forks(*words) if self._fork else self.runs(*self._command, *words)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def runs(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=_LIMIT_S
        )

    def _forks(self, *words: str) -> "subprocess.CompletedProcess[str]":
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            process = Forked(
                "api.cli.__main__", *words, env=self._env, log=out, errors=err, folder=self.folder
            )
            try:
                code = process.wait(_LIMIT_S)
            except BaseException:
                process.kill()
                raise
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def says(self, code: int, *words: str) -> str:
        """What a command says in one line, which must end with this exit code."""
        done = self.types(*words)
        assert done.returncode == code, done.stderr or done.stdout
        return " ".join((done.stdout or done.stderr).split())

    def reads(self, *words: str) -> Any:
        done = self.types(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
