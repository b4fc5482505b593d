"""The one way out of a process that used a Temporal client.

The core's threads may still run when the interpreter ends, and then abort it: about one run in twelve. They end within some hundred milliseconds
after the last client and worker are gone, so the process waits that long and then leaves with its own exit code.
"""

import gc
import sys
import time
from typing import NoReturn

_THREADS_END_S = 0.3


def exit_process(code: int) -> NoReturn:
    """End the process with `code`. Call it last, when clients and workers are closed."""
    let_threads_end()
    sys.exit(code)


def let_threads_end() -> None:
    gc.collect()
    time.sleep(_THREADS_END_S)
