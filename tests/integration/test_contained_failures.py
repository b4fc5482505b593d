"""What retention can't archive keeps only itself back, and people are told."""

import errno
import os
import shutil
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text

from activities.artifacts.folder import FolderArtifacts
from activities.fence.order_log import SqlOrderLog
from activities.retention import audit_trail, records
from activities.retention.archives import Archives
from activities.retention.parquet import encode
from activities.retention.upkeep import AUDIT, ORDERS, RowRetention
from activities.settings import RetentionSettings
from activities.storage.database import Database
from activities.storage.heartbeats import HeartbeatWriter, processes
from activities.storage.opening import open_database
from activities.storage.tables import ArchiveRow, AuditRow, DecisionInputsRow, OrderLogRow
from activities.storage.transactions import RecordedChange, table_of
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import CancelRequest
from tests.support.archive_house import LATER, NOW, House, lived, ordered, unprotected
from tests.support.desk import Desk
from tests.support.machine import wait_for


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path / "archives")


def chains(house: House) -> list[str]:
    """The chains of the audit trail that have rows in the table."""
    return sorted(set(house.sql("SELECT chain FROM audit")))


def test_a_broken_world_keeps_no_other_from_being_sealed_and_archived(house: House, dsn: str) -> None:
    broken, whole = Desk(house.database, "a"), Desk(house.database, "b")
    for desk in (broken, whole):
        desk.apply("dryrun")
        ordered(desk, 3)
    house.run(NOW + timedelta(days=2))
    with house.database.write("attacker", bookkeeping=True) as tx:
        unprotected(tx.connection, dsn)
        tx.connection.execute(text("UPDATE order_log SET reason = 'x' WHERE world_id = 'a'"))
    whole.end_sessions()
    ordered(whole, 3)
    Desk(house.database, "newest").apply("dryrun")
    mine = house.sql("SELECT seq FROM order_log WHERE world_id = 'b' ORDER BY seq")
    with pytest.raises(QmtlError, match="the order log of a has been changed") as caught:
        house.retention.apply(ORDERS, LATER, 60.0)
    assert caught.value.code == "E_AUDIT_BROKEN"
    assert [row["seq"] for row in house.archived("order_log")] == mine
    assert house.audit.verify("b").orders == len(mine)
    assert house.sql("SELECT count(*) FROM order_log WHERE world_id = 'a'") == [10]


def test_a_false_seal_of_a_world_keeps_no_other_from_being_sealed(house: House) -> None:
    for world in ("a", "b"):
        desk = Desk(house.database, world)
        desk.apply("dryrun")
        ordered(desk, 3)
    house.sql("INSERT INTO order_seal VALUES ('a', 1, 1, 1000000000, 1, 'x', '2025')")
    with pytest.raises(QmtlError, match="the order log of a has been changed"):
        house.retention.apply(ORDERS, NOW + timedelta(days=2), 60.0)
    assert house.audit.verify("b").orders == 10


def test_all_worlds_are_sealed_before_any_is_archived(house: House) -> None:
    for world in ("a", "b", "newest"):
        desk = Desk(house.database, world)
        desk.apply("dryrun")
        ordered(desk, 3)
    shutil.rmtree(house.folder)
    house.folder.write_bytes(b"")  # no archive can be written
    with pytest.raises(QmtlError, match="E_ARCHIVE"):
        house.retention.apply(ORDERS, LATER, 60.0)
    assert sorted(house.sql("SELECT world_id FROM order_seal")) == ["a", "b", "newest"]


def test_a_broken_chain_keeps_only_its_own_rows_back(
    house: House, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its rows alone are more than one archive takes: they are the oldest, run after run."""
    monkeypatch.setattr(audit_trail, "_MOST_ROWS", 10)
    for name in ("broken", "other", "another"):
        for _ in range(15):
            with house.database.write("test") as tx:
                tx.record(RecordedChange("world.updated", name, name))
    with house.database.write("attacker", bookkeeping=True) as tx:
        unprotected(tx.connection, dsn, "audit")
        tx.connection.execute(text("UPDATE audit SET actor = 'x' WHERE chain = 'broken' AND number = 3"))
    with house.database.write("test") as tx:
        tx.record(RecordedChange("world.updated", "newest", "newest"))
    for _ in range(2):
        with pytest.raises(QmtlError, match="the audit trail of broken has been changed") as caught:
            house.retention.apply(AUDIT, LATER, 60.0)
        assert caught.value.code == "E_AUDIT_BROKEN"
        assert not {"other", "another"} & set(chains(house))
        assert house.sql("SELECT count(*) FROM audit WHERE chain = 'broken'") == [15]
    assert house.audit.verify("other").entries == 15
    assert house.audit.verify("another").entries == 15


def test_the_worker_reports_what_it_could_not_archive_until_it_can(house: House, dsn: str) -> None:
    desk = lived(house)
    house.run(NOW + timedelta(days=2))
    with house.database.write("attacker", bookkeeping=True) as tx:
        unprotected(tx.connection, dsn)
        tx.connection.execute(text("UPDATE order_log SET at = at || ' ' WHERE world_id = 'w'"))
    with pytest.raises(QmtlError):
        house.retention.apply(ORDERS, LATER, 60.0)
    assert house.retention.apply("sessions", LATER, 60.0)[0] == 0
    with HeartbeatWriter(house.database, "worker") as heartbeat:
        heartbeat.worked(house.retention.fault)
        (worker,) = wait_for(
            lambda: [item for item in processes(house.database) if item.name == "worker" and item.fault],
            "fault of the worker",
        )
    kind, _, message = worker.fault.partition(": ")
    assert (worker.state, kind) == ("running", "retention of orders E_AUDIT_BROKEN")
    assert message.startswith(f"the order log of {desk.world} has been changed")
    house.sql("UPDATE order_log SET at = rtrim(at) WHERE world_id = 'w'")
    house.retention.apply(ORDERS, LATER, 60.0)
    assert house.retention.fault == ""


def test_a_row_from_the_future_keeps_no_later_row(house: House) -> None:
    """The clock of a host was wrong once: all rows after that one counted as young until the year came."""
    desk = lived(house)
    future = "2999-01-01T00:00:00.000000+00:00"
    house.published()
    house.sql(f"UPDATE outbox SET at = '{future}' WHERE seq = 2")
    house.retention.apply("events", LATER, 60.0)
    assert house.sql("SELECT seq FROM outbox WHERE type != 'rows.archived'") == [2]
    house.sql(
        "INSERT INTO order_log (at, world_id, kind, ref, epoch, strategy_id, reason, body)"
        f" VALUES ('{future}', 'w', 'switch', 'r', 1, '', '', '')"
    )
    ordered(desk, 5)
    Desk(house.database, "later").apply("dryrun")
    house.retention.apply(ORDERS, LATER, 60.0)
    assert house.sql("SELECT count(*) FROM order_log WHERE world_id = 'w'") == [0]
    assert len(house.archived("order_log")) >= 24 + 1 + 10


def test_a_change_from_the_future_keeps_no_later_entry_of_the_trail(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(at: str | None = None) -> None:
        with monkeypatch.context() as patch:
            if at:
                patch.setattr("activities.storage.transactions.utc_now", lambda: at)
            with house.database.write("test") as tx:
                tx.record(RecordedChange("world.updated", "ana", "ana"))

    change()
    change("2999-01-01T00:00:00.000000+00:00")
    change()
    change("2999-01-01T00:00:00.000000+00:00")  # nobody knows how old this one is
    with house.database.write("test") as tx:
        tx.record(RecordedChange("world.updated", "newest", "newest"))
    house.retention.apply(AUDIT, LATER, 60.0)
    assert house.sql("SELECT number FROM audit WHERE chain = 'ana'") == [4]
    assert house.audit.verify("ana").entries == 4


def test_no_row_is_older_than_the_clock_says(house: House) -> None:
    """The message of a run may name any moment, and the clock of Temporal's host may be ahead."""
    lived(house)
    house.run(NOW + timedelta(days=2))
    before = {name: len(house.sql(f"SELECT 1 FROM {name}")) for name in ("order_log", "audit", "outbox")}
    real = RowRetention(house.database, Archives(house.artifacts), RetentionSettings())
    for kind in real.kinds:
        assert real.apply(kind, LATER, 60.0) == (0, False)
    after = {name: len(house.sql(f"SELECT 1 FROM {name}")) for name in before}
    assert (after, house.count(ArchiveRow)) == (before, 0)


@pytest.mark.parametrize(("kind", "source"), [(AUDIT, "audit"), ("decisions", "decision_inputs")])
def test_an_archive_has_a_limit_of_characters(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str, source: str
) -> None:
    """5,000 rows of the trail, each with a large decision, took gigabytes."""
    monkeypatch.setattr(records, "MOST_CHARACTERS", 20_000)
    desk = Desk(house.database)
    for number in range(12):
        desk.decide()
        with house.database.write("test") as tx:
            tx.record(RecordedChange("x", desk.world, "x", after="x" * (9000 if number != 5 else 30_000)))
            seq = "(SELECT max(seq) FROM decision)"
            tx.connection.execute(text(f"DELETE FROM decision_inputs WHERE decision_seq = {seq}"))
            tx.connection.execute(
                text(f"INSERT INTO decision_inputs VALUES ({seq}, 'w', :body)"),
                {"body": "x" * (9000 if number != 5 else 30_000)},
            )
    Desk(house.database, "newest")
    house.retention.apply(kind, LATER, 60.0)
    with house.database.read() as session:
        archive = table_of(ArchiveRow)
        query = select(archive.c.artifact).distinct().where(archive.c.source == source)
        artifacts = session.connection().execute(query).scalars().all()
    files = [house.rows(artifact) for artifact in artifacts]
    sizes = [sum(len(row.get("body") or row.get("after") or "") for row in rows) for rows in files]
    assert max(sizes) < 32_000
    assert sum(size > 20_000 for size in sizes) == 1, "one record that is larger than the limit"
    assert sum(sizes) > 12 * 9000


@pytest.mark.parametrize("kind", [ORDERS, AUDIT, "decisions"])
def test_a_folder_that_takes_no_archive_is_an_error_that_ends_the_attempt(house: House, kind: str) -> None:
    """It was retried every five seconds for ever, and no other kind was reached."""
    lived(house)
    house.run(NOW + timedelta(days=2))
    before = {row: house.count(row) for row in (OrderLogRow, AuditRow, DecisionInputsRow)}
    shutil.rmtree(house.folder)
    house.folder.write_bytes(b"")
    with pytest.raises(QmtlError, match="can't be written") as caught:
        house.retention.apply(kind, LATER, 60.0)
    assert caught.value.code == "E_ARCHIVE"
    assert {row: house.count(row) for row in before} == before


def test_a_value_that_no_archive_can_hold_is_an_error_that_ends_the_attempt(tmp_path: Path) -> None:
    """SQLite stores whatever it is given."""
    with closing(open_database(f"sqlite:///{tmp_path / 'qmtl.db'}")) as database:
        house = House(database, tmp_path / "archives")
        lived(house)
        house.sql("UPDATE decision SET policy_version = 'abc'")
        with pytest.raises(QmtlError, match="can't be written") as caught:
            house.retention.apply("decisions", LATER, 60.0)
        assert caught.value.code == "E_ARCHIVE"


@pytest.mark.parametrize(
    ("column", "value"), [("number", "x"), ("number", 2**70), ("at", 1), ("at", b"\xff")]
)
def test_a_value_of_another_type_is_a_value_error(column: str, value: object) -> None:
    table = table_of(AuditRow)
    row = dict.fromkeys(table.columns.keys(), None)
    with pytest.raises(ValueError, match=r".+"):
        encode(table, [{**row, column: value}])


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, data = FolderArtifacts(tmp_path), os.urandom(10_000)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                store.put(content_hash(data), data)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.put(content_hash(data), data)
    assert store.get(content_hash(data)) == data


@pytest.mark.parametrize("damage", ["empty", "changed"])
def test_a_file_with_other_bytes_than_its_name_says_is_replaced(tmp_path: Path, damage: str) -> None:
    """One that a crash or a bad disk had left kept the archive of its rows back for ever."""
    store, data = FolderArtifacts(tmp_path), b"some bytes"
    name = content_hash(data)
    store.put(name, data)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(b"" if damage == "empty" else b"SOME BYTES")
    with pytest.raises(QmtlError, match="damaged"):
        store.get(name)
    store.put(name, data)
    assert store.get(name) == data


def test_the_name_of_a_file_is_on_the_disk_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the rows were removed, and their archive had no name."""
    store, data = FolderArtifacts(tmp_path / "artifacts"), b"some bytes"
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        named = any(path.is_file() and "." not in path.name for path in tmp_path.rglob("*"))
        synced.append((os.fstat(descriptor).st_ino, named))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    store.put(content_hash(data), data)
    folder = next(path.parent for path in tmp_path.rglob("*") if path.is_file())
    for synced_folder in (folder, folder.parent):
        assert (synced_folder.stat().st_ino, True) in synced


def test_a_folder_that_can_t_be_reached_is_no_lost_archive(house: House) -> None:
    desk = lived(house)
    house.run()
    house.folder.rename(house.folder.with_name("away"))
    with pytest.raises(QmtlError) as caught:
        house.audit.verify(desk.world)
    assert caught.value.code == "E_UNAVAILABLE"
    house.folder.with_name("away").rename(house.folder)
    shutil.rmtree(house.folder)
    house.folder.mkdir()
    with pytest.raises(QmtlError, match="can't be read") as caught:
        house.audit.verify(desk.world)
    assert caught.value.code == "E_ARCHIVE"


def test_the_seals_of_a_world_are_one_subject(house: House) -> None:
    """The bus keeps the newest event of each subject for ever."""
    desk = lived(house)
    for day in range(2, 6):
        desk.end_sessions()
        ordered(desk, 1)
        house.retention.apply(ORDERS, NOW + timedelta(days=day), 60.0)
    subjects = house.sql("SELECT subject FROM outbox WHERE type = 'orders.sealed' AND key = 'w'")
    assert len(subjects) == 4
    assert len(set(subjects)) == 1


def test_an_open_order_keeps_the_later_segments_of_its_world_until_it_is_cancelled(house: House) -> None:
    desk = Desk(house.database)
    desk.apply("dryrun")
    ordered(desk, 1, cancel=False)
    house.retention.apply(ORDERS, NOW + timedelta(days=2), 60.0)
    desk.end_sessions()
    ordered(desk, 2, cancel=False)
    Desk(house.database, "newest").apply("dryrun")
    assert house.retention.apply(ORDERS, LATER, 60.0)[0] == 0
    SqlOrderLog(house.database).cancel(desk.world, CancelRequest(all=True), "olga")
    Desk(house.database, "later").apply("dryrun")
    assert house.retention.apply(ORDERS, LATER, 60.0)[0] > 6
