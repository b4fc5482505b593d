"""Stopping a process by its pid, and what a process does at the signal."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from api.parts import MODULES
from temporal.server import stop_process
from tests.support import ROOT

# Starts a child, prints its pid and never collects it, as process 1 of many containers does.
NEGLECTFUL = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
PATIENT = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {PATIENT}"


def seconds_to_stop(program: str, limit_s: float) -> float:
    parent = subprocess.Popen([sys.executable, "-c", NEGLECTFUL, program], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        begun = time.monotonic()
        assert stop_process(pid, limit_s=limit_s)
        return time.monotonic() - begun
    finally:
        parent.kill()
        parent.communicate()


def test_a_process_that_nobody_collects_counts_as_ended() -> None:
    """`down` waited 10 s for each zombie, and then failed."""
    assert seconds_to_stop(PATIENT, limit_s=30) < 15


def test_a_process_that_ignores_the_signal_is_killed_at_the_limit() -> None:
    assert 0.5 < seconds_to_stop(STUBBORN, limit_s=0.5) < 15


WAITS = """
import os, signal, threading
from activities.process import stop_at_signals
stop = stop_at_signals()
with stop._cond:  # as `stop.wait` holds it for a moment
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(0.2)
assert stop.wait(30)
print("stopped")
"""


def test_a_signal_that_comes_while_the_process_looks_at_the_event_stops_it() -> None:
    """The handler set the event itself, in the thread that held the event's lock."""
    done = subprocess.run([sys.executable, "-c", WAITS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "stopped\n", done.stderr


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"supervisor"}))
def test_no_process_starts_with_the_profile_prod_over_local_files(tmp_path: Path, name: str) -> None:
    """`prod` started on files of one host; a second host followed its own empty bus."""
    (tmp_path / "qmtl.yml").write_text("profile: prod\nhome: home\n")
    done = subprocess.run(
        [sys.executable, "-m", MODULES[name]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    for setting in ("gateway.database_backend", "events.bus", "queues", "artifacts", "signing keys"):
        assert setting in done.stderr
    assert not (tmp_path / "home").exists()
