"""Heartbeats: which processes live, from rows that they write themselves.

1. A process writes its row every `HEARTBEAT_S` seconds from a thread of its own (`HeartbeatWriter`). The row
   says when its loop last worked, so that a loop that hangs, such as in a call of a broker, does not pass for
   alive.
2. A process that ends normally marks its row as stopped. The row of one that was killed stays, and shows as
   dead, until a process of its name that began after it works, for `_KEEP_S` seconds at most.
3. Of the processes that elect one of them, the others stand by. They replace nothing, and do no work.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import psutil
import structlog
from sqlalchemy import Delete, and_, delete, or_
from sqlmodel import col, select

from activities.storage.database import Database
from activities.storage.tables import ProcessRow
from activities.storage.transactions import utc_before, utc_now
from qmtl_sdk.contracts.processes import ProcessState, ProcessStatus

HEARTBEAT_S = 3.0
"""Seconds between two heartbeats of a process."""

SEEN_WITHIN_S = 8.0
"""Seconds without a heartbeat after which a process counts as missing."""

WORKED_WITHIN_S = 20.0
"""Seconds without work of its loop after which a process counts as missing."""

RUNNING = "running"
STANDBY = "standby"
STOPPED = "stopped"

# Seconds for which the row of a process that was killed is kept.
_KEEP_S = 600.0

# Rows that are read at most: many more than an installation has processes.
_MOST = 100

# Characters of a fault.
_FAULT = 200

# Seconds between two searches for rows that are too old.
_CLEAN_EVERY_S = 30.0

_log = structlog.get_logger()


def fault_text(error: BaseException) -> str:
    """Return an error as one short line that every database can store."""
    return _one_line(f"{type(error).__name__}: {error}")


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else " " for sign in line[:_FAULT])


class HeartbeatWriter:
    """Writes the heartbeats of this process while its block runs; its methods say what they report.

    A heartbeat that cannot be written is logged, and the next one is written when it is due.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._due = threading.Event()
        self.failures = 0
        # What this process replaced when it last looked for rows to delete, and when that was.
        self._cleaned = ("", 0.0)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        now = utc_now()
        self._row = ProcessRow(
            process_id=uuid.uuid4().hex,
            name=name,
            pid=os.getpid(),
            host=socket.gethostname(),
            state=RUNNING,
            fault="",
            started_at=now,
            since=now,
            seen_at="",
            worked_at="",
        )

    def __enter__(self) -> "HeartbeatWriter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._due.set()
        self._thread.join()

    def elected(self) -> None:
        """Note that this process is the one that works."""
        self._enter(RUNNING)

    def stands_by(self) -> None:
        """Note that another process does the work, and that this one is ready for it."""
        self._enter(STANDBY)
        self.worked()

    def worked(self, fault: str = "") -> None:
        """Note that the loop has worked, or had nothing to do; `fault`: what it could not do nevertheless."""
        with self._lock:
            first = not self._row.worked_at
            self._row.worked_at = utc_now()
            self._row.fault = _one_line(fault)
            self.failures = 0
        if first:  # others wait for this
            self._due.set()

    def stuck(self, fault: str) -> None:
        """Note why the loop does not do its work, although its turns succeed. `worked_at` stays."""
        with self._lock:
            self._row.fault = fault

    def failed(self, error: BaseException) -> None:
        """Note the error of a turn, and count it in `failures`; a turn that succeeds removes both."""
        with self._lock:
            self._row.fault = fault_text(error)
            self.failures += 1

    def _enter(self, state: str) -> None:
        with self._lock:
            if self._row.state != state:
                self._row.state = state
                self._row.since = utc_now()
                self._row.worked_at = ""

    def _run(self) -> None:
        while not self._stop.is_set():
            self._write()
            self._due.wait(HEARTBEAT_S)
            self._due.clear()
        with self._lock:
            self._row.state = STOPPED
        self._write()

    def _write(self) -> None:
        """Write this row; now and then delete those that it replaces and those that are too old."""
        with self._lock:
            self._row.seen_at = utc_now()
            row = ProcessRow(**self._row.model_dump())
        replaced = row.since if row.state == RUNNING and row.worked_at else ""
        before, at = self._cleaned
        cleans = replaced != before or time.monotonic() - at > _CLEAN_EVERY_S
        try:
            with self._database.write(row.name, bookkeeping=True) as tx:
                tx.upsert(row)
                if cleans:
                    tx.connection.execute(_gone(row, replaced))
            if cleans:
                self._cleaned = replaced, time.monotonic()
        except Exception as error:  # a database that is away comes back; the thread goes on until then
            _log.warning("a heartbeat cannot be written", process=row.name, why=fault_text(error))


def _gone(row: ProcessRow, replaced: str) -> Delete:
    """Return the statement that deletes what a process replaced, and the rows that are too old."""
    return delete(ProcessRow).where(
        col(ProcessRow.process_id) != row.process_id,
        or_(
            and_(col(ProcessRow.name) == row.name, col(ProcessRow.seen_at) < replaced),
            col(ProcessRow.seen_at) < utc_before(timedelta(seconds=_KEEP_S)),
        ),
    )


def processes(database: Database) -> list[ProcessStatus]:
    """List the processes that have not stopped, by name. Raises QmtlError (E_UNAVAILABLE)."""
    newest_first = col(ProcessRow.seen_at).desc()
    query = select(ProcessRow).where(ProcessRow.state != STOPPED).order_by(newest_first).limit(_MOST)
    with database.read() as session:
        return sorted((_status(row) for row in session.exec(query)), key=lambda found: found.name)


def count_working(found: Sequence[ProcessStatus], name: str) -> int:
    """Count the processes of a name that do its work. One that stands by does not."""
    return sum(item.name == name and item.state == "running" for item in found)


def _status(row: ProcessRow) -> ProcessStatus:
    """Describe a process by its row."""
    seen_s, worked_s = _age(row.seen_at), _age(row.worked_at) if row.worked_at else None
    return ProcessStatus(
        name=row.name,
        pid=row.pid,
        host=row.host,
        state=_state(row, seen_s, worked_s),
        seen_s=round(seen_s, 1),
        worked_s=None if worked_s is None else round(worked_s, 1),
        fault=row.fault,
    )


def _state(row: ProcessRow, seen_s: float, worked_s: float | None) -> ProcessState:
    if seen_s > SEEN_WITHIN_S:
        return "dead" if row.host == socket.gethostname() and not _exists(row) else "not answering"
    if worked_s is None:
        return "starting" if _age(row.since) < WORKED_WITHIN_S else "not answering"
    if worked_s > WORKED_WITHIN_S:
        return "not answering"
    return "standing by" if row.state == STANDBY else "running"


def _exists(row: ProcessRow) -> bool:
    """Return whether the process of this host still exists, and its pid was not given to another."""
    try:
        process = psutil.Process(row.pid)
        created = datetime.fromtimestamp(process.create_time(), UTC)
        return created <= _time(row.seen_at) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _age(at: str) -> float:
    """Return the seconds since a time; 0 for one that a clock of another host has not reached."""
    return max((datetime.now(UTC) - _time(at)).total_seconds(), 0.0)


def _time(at: str) -> datetime:
    return datetime.fromisoformat(at)
