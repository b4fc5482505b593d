"""What processes and files of a machine take: memory, descriptors, bytes on disk."""

import hashlib
import os
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlmodel import SQLModel

from activities.storage.database import Database
from tests.chaos.soak.figures import FIXED_WORK, Figures
from tests.support.machine import Machine

PROCESSES = ("gateway", "worker", "relay", "router")

_MB = 2**20

_WORK = bytes(8 * _MB)


def sample(machine: Machine, figures: Figures) -> None:
    """Note the sizes of now."""
    for name in PROCESSES:
        process = psutil.Process(machine.pids[name])
        with process.oneshot():
            figures.note(f"{name} memory, MB", process.memory_full_info().pss / _MB)
            figures.note(f"{name} descriptors", process.num_fds())
    for title, name in (("database", "qmtl.db"), ("bus", "bus.db")):
        figures.note(f"{title}, MB", _size(machine.home / name) / _MB)
    figures.note("load of the machine", os.getloadavg()[0])
    with figures.timed(FIXED_WORK):
        hashlib.sha256(_WORK).digest()


def _size(path: Path) -> int:
    """Bytes of an SQLite database, with its write-ahead log."""
    files = (path, path.with_name(f"{path.name}-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def rows_of(database: Database) -> dict[str, int]:
    """Count the rows of each table, which say what a database has grown by."""
    with database.read() as session:
        return {
            name: int(session.connection().execute(select(func.count()).select_from(table)).scalar_one())
            for name, table in SQLModel.metadata.tables.items()
        }
