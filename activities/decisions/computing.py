"""Threads in which judgments are computed: where the machine is busy, they leave its cores to orders.

Only computing is nice. A nice thread that held a fence, or SQLite's only writer, would make orders wait.
"""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

# How nice the threads are (0 to 19). A judgment of a thousand strategies takes a core for 0.2 s.
_NICE = 10

# Judgments that are computed at a time.
_THREADS = 4


def computing_threads() -> ThreadPoolExecutor:
    """Return the threads."""
    return ThreadPoolExecutor(_THREADS, "judging", initializer=_be_nice)


def _be_nice() -> None:
    """Let this thread yield to those of other work. Linux alone has priorities of single threads."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        nice = max(os.getpriority(os.PRIO_PROCESS, thread), _NICE)  # less nice, only root may be
        os.setpriority(os.PRIO_PROCESS, thread, nice)
