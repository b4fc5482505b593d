"""Run the `qmtl` command as a person would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support import ROOT


class Person:
    """Types commands in a folder of their own: those of this source tree, or of the program `qmtl`."""

    def __init__(self, folder: Path, qmtl: Path | None = None, **env: str) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("QMTL_GATEWAY")}
        self.folder = folder
        self._env = {**kept, "COLUMNS": "200", **env}
        if qmtl is None:
            self._command = [sys.executable, "-m", "api.cli"]
            self._env["PYTHONPATH"] = str(ROOT)
        else:
            self._command = [str(qmtl)]
            for name in ("VIRTUAL_ENV", "PYTHONPATH"):
                self._env.pop(name, None)

    def types(self, *words: str) -> "subprocess.CompletedProcess[str]":
        done = self.runs(*self._command, *words)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done

    def runs(self, *command: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command, cwd=self.folder, env=self._env, capture_output=True, text=True, timeout=200
        )

    def reads(self, *words: str) -> Any:
        done = self.types(*words, "-o", "json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
