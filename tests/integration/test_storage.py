"""What holds for a database and a log as such, on each backend."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlmodel import select

from activities.storage.database import Database
from activities.storage.log import NewEntry, SqliteLog
from activities.storage.opening import open_database
from activities.storage.tables import StoreIdentityRow
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.errors import QmtlError

# Bytes of the first page of a SQLite file, which holds its schema.
PAGE = 4096


def test_a_reader_sees_one_snapshot(database: Database) -> None:
    """The audit trail's head and rows came from two, and `verify` took a new row for a forged one."""
    with database.read() as session:
        before = session.exec(select(StoreIdentityRow.store_id)).all()
        with database.write("test") as tx:
            tx.session.add(StoreIdentityRow(store_id="another"))
            tx.record(RecordedChange("store.created", "", "another"))
        assert session.exec(select(StoreIdentityRow.store_id)).all() == before
    with database.read() as session:
        assert len(session.exec(select(StoreIdentityRow.store_id)).all()) == len(before) + 1


def test_threads_that_ended_leave_no_open_files(database: Database, tmp_path: Path) -> None:
    """Each thread had a connection and lock files of its own, and they stayed open when it ended."""
    log = SqliteLog(tmp_path / "log.db")
    together = threading.Barrier(15, timeout=30)

    def use(n: int) -> None:
        together.wait()
        with database.write("test", bookkeeping=True) as tx:
            tx.lock("test")
        with database.read() as session:
            session.exec(select(StoreIdentityRow)).all()
        log.append([NewEntry("topic", f"{n}-{threading.get_ident()}", "subject", "{}")])
        log.read("topic", 0, 10)

    def burst() -> int:
        with ThreadPoolExecutor(15) as pool:
            list(pool.map(use, range(15)))
        return psutil.Process().num_fds()

    first, *later = [burst() for _ in range(6)]
    log.close()
    # The first burst may have had fewer threads at work at the same moment than a later one.
    assert max(later) <= first + 60, (first, later)


def test_a_damaged_file_is_one_clear_line(tmp_path: Path) -> None:
    file = tmp_path / "qmtl.db"
    file.write_bytes(b"not a database" * 1000)
    with pytest.raises(QmtlError, match=r"is damaged: file is not a database") as caught:
        open_database(f"sqlite:///{file}")
    assert caught.value.code == "E_UNAVAILABLE"


def test_files_that_cannot_be_written_are_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "qmtl.db.next").mkdir()
    with pytest.raises(QmtlError, match=r"qmtl\.db\.next can't be written: Is a directory") as caught:
        open_database(f"sqlite:///{tmp_path / 'qmtl.db'}")
    assert caught.value.code == "E_UNAVAILABLE"
    (tmp_path / "file").write_text("")
    with pytest.raises(QmtlError, match="can't be made: Not a directory") as caught:
        open_database(f"sqlite:///{tmp_path / 'file' / 'home' / 'qmtl.db'}")
    assert caught.value.code == "E_UNAVAILABLE"


def test_a_damaged_log_is_unavailable_and_no_fault_of_what_it_was_given(tmp_path: Path) -> None:
    """The relay made dead letters of all events meanwhile."""
    whole = SqliteLog(tmp_path / "log.db")
    whole.append([NewEntry("topic", f"e{number}", "subject", "{}") for number in range(1000)])
    whole.close()
    log = SqliteLog(tmp_path / "log.db")
    size = (tmp_path / "log.db").stat().st_size
    with (tmp_path / "log.db").open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\xff" * (size - PAGE))
    try:
        with pytest.raises(
            QmtlError, match=r"the log log\.db can't be read or written: .*malformed.* \[E_UNAVAILABLE\]"
        ):
            log.append([NewEntry("topic", "another", "subject", "{}")])
        for read in (lambda: log.read("topic", 0, 10), lambda: log.newest("topic"), log.topics):
            with pytest.raises(QmtlError, match="E_UNAVAILABLE"):
                read()
    finally:
        log.close()
