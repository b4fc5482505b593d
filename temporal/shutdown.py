"""How every process that used a Temporal client exits.

Threads of Temporal's core may still run when the interpreter ends, and abort it then: about one run in
twelve. They end within some hundred milliseconds after the last client and worker, so the process waits that
long first.
"""

import gc
import sys
import time
from typing import NoReturn

# Seconds in which the core's threads end.
_THREADS_END_S = 0.3


def exit_process(code: int) -> NoReturn:
    """End the process with `code`. Call it last, when clients and workers are closed."""
    let_threads_end()
    sys.exit(code)


def let_threads_end() -> None:
    """Wait until the threads of closed clients and workers have ended."""
    gc.collect()
    time.sleep(_THREADS_END_S)
