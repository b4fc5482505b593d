"""`bin/qmtl` runs the tree's command from anywhere, without uv."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

# Without uv, and without the environment that runs the tests.
BARE = {"PATH": "/usr/bin:/bin"}


def run(command: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(command), "--help"], cwd=folder, env=BARE, capture_output=True, text=True, timeout=60
    )


@pytest.mark.skipif(
    os.environ.get("CI") != "true" and not (ROOT / ".venv" / "bin" / "qmtl").exists(),
    reason="`make setup` makes .venv",
)
def test_it_runs_from_any_folder_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "qmtl"
    link.symlink_to(ROOT / "bin" / "qmtl")
    for command in (ROOT / "bin" / "qmtl", link):
        done = run(command, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "submit" in done.stdout


def test_a_tree_that_is_not_set_up_names_the_command_to_run(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin" / "qmtl", tmp_path / "bin" / "qmtl")
    done = run(tmp_path / "bin" / "qmtl", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"make -C {tmp_path} setup" in done.stderr
