"""The loop of a process that works alone for its database, such as the relay and the order router."""

import threading
import time
from collections.abc import Callable

import structlog

from activities.storage.database import Database
from qmtl_sdk.contracts.errors import QmtlError

# Seconds between two tries to be elected.
_ELECTION_S = 0.5

# Seconds after which a process confirms that it is still the elected one. Where the database drops its
# connection, another process may be elected while it goes on for so long; what both do twice is idempotent.
_CONFIRM_S = 0.5

# Seconds before the first repetition of a turn that failed; it doubles with each failure.
_RETRY_S = 1.0

# Seconds between two repetitions at most.
_RETRY_LIMIT_S = 30.0

_log = structlog.get_logger()


def run_elected(database: Database, role: str, turn: Callable[[], float], stop: threading.Event) -> None:
    """Repeat `turn` until `stop` is set, while this process is elected for `role`.

    `turn` returns the seconds until the next one is due if nothing is committed before; 0 where it had work,
    as there may be more. A turn that fails is logged and repeated, with growing pauses; after the first
    failure the process is elected anew, since it may have lost its connection to the database.
    """
    pause = _RETRY_S
    while not stop.is_set():
        try:
            with database.elected(role) as confirm:
                if confirm is None:
                    stop.wait(_ELECTION_S)
                    continue
                with database.watch_commits() as commits:
                    # The first turn is due at once, for what was committed before.
                    due = confirmed = time.monotonic()
                    while not stop.is_set():
                        left = due - time.monotonic()
                        if left > 0 and not commits.wait(left, stop):
                            continue
                        if time.monotonic() - confirmed > _CONFIRM_S:
                            confirm()
                            confirmed = time.monotonic()
                        next_s = turn()
                        due = time.monotonic() + next_s
                        if not next_s:
                            commits.last_work_at = due
                        pause = _RETRY_S
        except Exception as error:  # whatever one turn raises, the process goes on
            _log.warning(f"the {role} failed", error=repr(error), retry_s=pause)
            stop.wait(pause)
            pause = min(2 * pause, _RETRY_LIMIT_S)


def unreachable(error: Exception) -> bool:
    """Return whether an error says that a service cannot be reached, whatever is sent to it."""
    return isinstance(error, OSError) or (isinstance(error, QmtlError) and error.code == "E_UNAVAILABLE")
