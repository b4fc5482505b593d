"""What somebody who writes past QMTL does to the audit trail and the order log is refused, or found."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError, IntegrityError

from activities.artifacts.folder import FolderArtifacts
from activities.retention import verification
from activities.retention.archives import Archives
from activities.retention.audit import SqlAudit
from activities.retention.upkeep import AUDIT, ORDERS
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.archive_house import LATER, NOW, House, lived, ordered
from tests.support.desk import Desk

FUTURE = "2999-01-01T00:00:00.000000+00:00"


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path / "archives")


def require_broken(house: House, chain: str, words: str) -> None:
    with pytest.raises(QmtlError, match=words) as caught:
        house.audit.verify(chain)
    assert caught.value.code == "E_AUDIT_BROKEN"


def add_order(house: House, seq: int | None = None, at: str = "2025-01-01T00:00:00.000000+00:00") -> None:
    """A row of the order log that no fence has written."""
    number, value = ("seq, ", f"{seq}, ") if seq is not None else ("", "")
    house.sql(
        f"INSERT INTO order_log ({number}at, world_id, kind, ref, epoch, strategy_id, reason, body)"
        f" VALUES ({value}'{at}', 'w', 'accepted', 'order:forged', 1, 'strategy:w0', '', '{{}}')"
    )


def add_entry(house: House, number: int) -> None:
    house.sql(
        "INSERT INTO audit (at, actor, action, world_id, subject, correlation_id, before, after, chain,"
        " number, hash) VALUES ('2025-01-01', 'ana', 'approval.given', 'w', 'run', 'run', 'null', '{}', 'w',"
        " :number, 'x')",
        number=number,
    )


def test_a_seal_that_the_trail_does_not_hold_is_found(house: House) -> None:
    """Everything after it was never sealed, and the verification was content."""
    lived(house)
    house.sql("INSERT INTO order_seal VALUES ('w', 1, 1, 1000000000, 1, 'x', '2025')")
    require_broken(house, "w", "its seal 1 is not the one of the audit trail")
    with pytest.raises(QmtlError, match="E_AUDIT_BROKEN"):
        house.retention.apply(ORDERS, NOW + timedelta(days=2), 60.0)


def test_a_seal_after_the_true_ones_is_found(house: House) -> None:
    desk = lived(house)
    house.run(NOW + timedelta(days=2))
    assert house.audit.verify(desk.world).orders == 24
    (newest,) = house.sql("SELECT max(seq) FROM order_log")
    house.sql("INSERT INTO order_seal VALUES ('w', 2, 1, :last, 1, 'x', '2025')", last=newest)
    require_broken(house, "w", "its seal 2 is not the one of the audit trail")


def test_rows_that_are_not_sealed_yet_are_counted(house: House) -> None:
    desk = lived(house)
    page = house.audit.page(desk.world, 0, 10, verify=True)
    assert (page.orders_verified, page.orders_unsealed) == (0, 24)
    (oldest,) = house.sql("SELECT min(at) FROM order_log WHERE world_id = 'w'")
    assert page.orders_unsealed_since == oldest
    house.run(NOW + timedelta(days=2))
    page = house.audit.page(desk.world, 0, 10, verify=True)
    assert (page.orders_verified, page.orders_unsealed, page.orders_unsealed_since) == (24, 0, None)
    assert page.head == house.audit.page(desk.world, 0, 1000).entries[-1].hash
    assert house.audit.page(desk.world, 0, 10).head is None


def test_a_row_from_the_future_keeps_no_later_row_from_being_sealed(house: House) -> None:
    desk = lived(house)
    house.run(NOW + timedelta(days=2))
    add_order(house, at=FUTURE)
    desk.end_sessions()
    ordered(desk, 5)
    house.retention.apply(ORDERS, NOW + timedelta(hours=1), 60.0)
    assert house.audit.verify(desk.world).unsealed == 0


@pytest.mark.parametrize("seq", [3, 0, -7])
def test_an_order_that_is_added_to_what_is_archived_is_found(house: House, seq: int) -> None:
    lived(house)
    house.run()
    add_order(house, seq)
    require_broken(house, "w", "was added to what is archived")


@pytest.mark.parametrize("seq", [0, -7])
def test_an_order_before_all_others_is_found(house: House, seq: int) -> None:
    lived(house)
    house.run(NOW + timedelta(days=2))
    add_order(house, seq)
    require_broken(house, "w", "the order log of w has been changed")


@pytest.mark.parametrize("number", [3, 0, -7])
def test_an_entry_that_is_added_to_what_is_archived_is_found(house: House, number: int) -> None:
    lived(house)
    house.run()
    add_entry(house, number)
    require_broken(house, "w", "the audit trail of w has been changed")


@pytest.mark.parametrize("number", [0, -7])
def test_an_entry_before_all_others_is_found(house: House, number: int) -> None:
    lived(house)
    add_entry(house, number)
    require_broken(house, "w", "the audit trail of w has been changed")


def test_an_entry_after_the_end_is_found(house: House) -> None:
    desk = lived(house)
    add_entry(house, house.audit.verify(desk.world).entries + 1)
    require_broken(house, "w", "the audit trail of w has been changed")


def test_a_number_of_a_chain_is_given_once(house: House) -> None:
    """A second entry was not read where a chunk ended between the two."""
    desk = lived(house)
    last = house.audit.verify(desk.world).entries
    with pytest.raises(IntegrityError):
        add_entry(house, last)
    assert house.audit.verify(desk.world).entries == last


@pytest.mark.parametrize("table", ["archive", "order_seal"])
def test_what_was_archived_and_sealed_is_never_changed(house: House, dsn: str, table: str) -> None:
    lived(house)
    house.run()
    before = house.sql(f"SELECT scope FROM {table}" if table == "archive" else f"SELECT last FROM {table}")
    column = {"archive": "artifact", "order_seal": "hash"}[table]
    for statement in (f"UPDATE {table} SET {column} = 'x'", f"DELETE FROM {table}"):
        with pytest.raises(DatabaseError, match="append-only"):
            house.sql(statement)
    if dsn.startswith("postgres"):
        with pytest.raises(DatabaseError, match="append-only"):
            house.sql(f"TRUNCATE {table}")
    else:
        house.sql(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")
        columns = {"archive": "seq, source, scope, 0, 9999, rows, 'x', at"}
        columns["order_seal"] = "world_id, number, first, last, rows, 'x', at"
        house.sql(f"INSERT OR REPLACE INTO {table} SELECT {columns[table]} FROM {table}")
    assert house.sql(f"SELECT count(*) FROM {table} WHERE {column} = 'x'") == [0]
    assert len(house.sql(f"SELECT 1 FROM {table}")) == len(before)


@pytest.mark.parametrize("table", ["audit", "order_log"])
def test_a_temporary_table_of_archives_allows_no_removal(house: House, table: str) -> None:
    lived(house)
    before = house.sql(f"SELECT count(*) FROM {table}")
    scope = {"audit": "chain", "order_log": "world_id"}[table]
    attack = house.database.write("attacker", bookkeeping=True)
    with pytest.raises(DatabaseError, match="append-only"), attack as tx:
        for statement in (
            "CREATE TEMPORARY TABLE archive AS SELECT * FROM archive",
            f"INSERT INTO archive VALUES (1, '{table}', 'w', -1, 99999, 1, 'x', '2025')",
            f"DELETE FROM {table} WHERE {scope} = 'w'",
        ):
            tx.connection.execute(text(statement))
    assert house.sql(f"SELECT count(*) FROM {table}") == before


class Watched(FolderArtifacts):
    """A folder in which something happens whenever an archive is read."""

    happens: Callable[[], None]

    def get(self, hash: str) -> bytes:
        self.happens()
        return super().get(hash)


def test_no_transaction_is_open_while_an_archive_is_read(house: House) -> None:
    """PostgreSQL ends one that does nothing for 30 s, so a long history could never be verified."""
    desk = lived(house)
    house.run()
    artifacts = Watched(house.folder)
    open_then = []
    artifacts.happens = lambda: open_then.append(house.database._engine.pool.checkedout())  # type: ignore[attr-defined]
    audit = SqlAudit(house.database, Archives(artifacts))
    audit.verify(desk.world)
    audit.page(desk.world, 0, 100)
    assert len(open_then) >= 3
    assert set(open_then) == {0}


@pytest.mark.parametrize("kind", [ORDERS, AUDIT])
def test_rows_may_be_archived_while_they_are_verified(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(verification, "CHUNK", 3)
    desk = lived(house)
    house.run()
    desk.end_sessions()
    ordered(desk, 3)
    desk.judge(house.folder / "judged")
    house.retention.apply(ORDERS, NOW + timedelta(days=2), 60.0)
    Desk(house.database, "later").apply("dryrun")
    expected = house.audit.verify(desk.world)
    assert house.sql("SELECT count(*) FROM audit WHERE chain = 'w'")[0] > 3
    archived = []

    def archive() -> None:
        if not archived:
            archived.append(house.retention.apply(kind, LATER, 60.0)[0])

    artifacts = Watched(house.folder)
    artifacts.happens = archive
    assert SqlAudit(house.database, Archives(artifacts)).verify(desk.world) == expected
    assert archived[0] > 0
    assert house.audit.verify(desk.world) == expected


def test_entries_that_are_written_while_others_are_verified_are_none_of_them(house: House) -> None:
    desk = lived(house)
    house.run()
    expected = house.audit.verify(desk.world)

    def write() -> None:
        with house.database.write("test") as tx:
            tx.record(RecordedChange("x", desk.world, "x", after=json.dumps({})))

    artifacts = Watched(house.folder)
    artifacts.happens = write
    assert SqlAudit(house.database, Archives(artifacts)).verify(desk.world) == expected
    assert house.audit.verify(desk.world).entries > expected.entries
