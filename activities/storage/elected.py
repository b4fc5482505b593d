"""The loop of a process that works alone for its database, such as the relay and the order router."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from activities.storage.commits import CommitWatcher
from activities.storage.database import Database
from activities.storage.heartbeats import HeartbeatWriter
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.errors import QmtlError

# Seconds between two tries to be elected.
_ELECTION_S = 0.5

# Seconds after which a process confirms that it is still the elected one. Where the database drops its
# connection, another process may be elected while it goes on for so long; what both do twice is idempotent.
_CONFIRM_S = 0.5

# Seconds before the first repetition of a turn that failed; it doubles with each failure.
_RETRY_S = 1.0

# Seconds between two repetitions at most: what failed may be in order again.
_RETRY_LIMIT_S = 10.0

# Seconds after which the elected process notes that it has nothing to do, which shows that it does not hang.
_NOTE_S = 1.0

_log = structlog.get_logger()


def _no_fault() -> str:
    return ""


def run_elected(
    database: Database,
    name: str,
    turn: Callable[[], float],
    stop: threading.Event,
    fault: Callable[[], str] = _no_fault,
) -> None:
    """Repeat `turn` until `stop` is set, while this process is elected as `name`.

    `turn` returns the seconds until the next one is due if nothing is committed before; 0 where it had work,
    as there may be more. A turn that fails is logged and repeated, with growing pauses; after the first
    failure the process is elected anew, since it may have lost its connection to the database.

    The process writes heartbeats meanwhile, which say when it last completed a turn or had none to do. While
    `fault` returns a text, its turns succeed and it does not do its work: then they do not count.
    """
    with HeartbeatWriter(database, name) as heartbeat:
        while not stop.is_set():
            try:
                with database.elected(name) as confirm:
                    if confirm is None:
                        heartbeat.stands_by()
                        stop.wait(_ELECTION_S)
                        continue
                    heartbeat.elected()
                    with database.watch_commits() as commits:
                        work = _Work(turn, fault, heartbeat)
                        _repeat(work, commits, confirm, stop)
            except Exception as error:  # whatever one turn raises, the process goes on
                heartbeat.failed(error)
                pause = retry_pause_s(heartbeat.failures, _RETRY_S, _RETRY_LIMIT_S)
                _log.warning(f"the {name} failed", error=repr(error), retry_s=pause)
                stop.wait(pause)


@dataclass(frozen=True)
class _Work:
    """The turns of a process, and the heartbeat that says whether they work."""

    turn: Callable[[], float]
    fault: Callable[[], str]
    heartbeat: HeartbeatWriter

    def note(self) -> None:
        """Note that the loop works, or why not."""
        fault = self.fault()
        if fault:
            self.heartbeat.stuck(fault)
        else:
            self.heartbeat.worked()


def _repeat(work: _Work, commits: CommitWatcher, confirm: Callable[[], None], stop: threading.Event) -> None:
    """Take turns as the elected process until `stop` is set."""
    due = confirmed = time.monotonic()  # the first turn is due at once, for what was committed before
    while not stop.is_set():
        left = due - time.monotonic()
        if left > 0 and not commits.wait(min(left, _NOTE_S), stop):
            work.note()
            continue
        if time.monotonic() - confirmed > _CONFIRM_S:
            confirm()
            confirmed = time.monotonic()
        next_s = work.turn()
        work.note()
        due = time.monotonic() + next_s
        if not next_s:
            commits.last_work_at = due


def unreachable(error: Exception) -> bool:
    """Return whether an error says that a service cannot be reached, whatever is sent to it."""
    return isinstance(error, OSError) or (isinstance(error, QmtlError) and error.code == "E_UNAVAILABLE")
