"""Processes that have the writer of a SQLite file, or the place before it."""

import subprocess
import sys
from pathlib import Path

import psutil

from tests.support import ROOT
from tests.support.machine import wait_for

# Takes the turnstile, and then does what the second argument says.
_WRITER = """
import os, signal, sys, time
from pathlib import Path
from activities.storage.turnstile import WriterTurnstile
with WriterTurnstile(Path(sys.argv[1])):
    exec(sys.argv[2])
"""

STOPS = "os.kill(os.getpid(), signal.SIGSTOP)"
WAITS = "time.sleep(600)"


def writer(path: Path, then: str = STOPS) -> "subprocess.Popen[bytes]":
    """Start a process that has the writer, and stops or does something else. The caller ends it."""
    process = started(path, then)
    wait_for(lambda: has_lock(path, ".writer", process.pid), "a process that has the writer")
    if then == STOPS:
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "one that is stopped")
    return process


def started(path: Path, then: str) -> "subprocess.Popen[bytes]":
    """Start a process that waits for the writer."""
    return subprocess.Popen([sys.executable, "-c", _WRITER, str(path), then], cwd=ROOT)


def has_lock(path: Path, suffix: str, pid: int) -> bool:
    """Whether the kernel lists the process as the holder of a lock file."""
    file = path.with_name(path.name + suffix)
    inode = file.stat().st_ino if file.exists() else 0
    locks = Path("/proc/locks").read_text().splitlines()
    return any(f" {pid} " in line and f":{inode} " in line for line in locks if "->" not in line)


def waits(pid: int) -> bool:
    """Whether the kernel lists the process as one that waits for a lock."""
    locks = Path("/proc/locks").read_text().splitlines()
    return any(f" {pid} " in line and "->" in line for line in locks)
