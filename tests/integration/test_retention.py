"""Rows that are older than they are kept are archived, and removed only after their archive was compared."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import DatabaseError

from activities.artifacts.folder import FolderArtifacts
from activities.fence.order_log import SqlOrderLog
from activities.retention.parquet import decode, encode
from activities.retention.rules import RULES
from activities.retention.upkeep import AUDIT, ORDERS
from activities.settings import RetentionSettings
from activities.storage.chain import OUTSIDE_WORLDS
from activities.storage.database import Database
from activities.storage.tables import (
    ArchiveRow,
    AuditRow,
    DecisionRow,
    EvidenceRow,
    OrderLogRow,
    OutboxRow,
    OutcomeRow,
)
from activities.storage.transactions import RecordedChange, table_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import CancelRequest
from tests.support.archive_house import LATER, NOW, TABLES, House, lived, ordered, unprotected
from tests.support.desk import Desk


@pytest.fixture
def house(database: Database, tmp_path: Path) -> House:
    return House(database, tmp_path / "archives")


def test_what_is_young_stays_and_nothing_is_written(house: House) -> None:
    lived(house)
    before = {name: house.count(row) for name, row in TABLES.items()}
    assert house.run(NOW) == 0
    assert {name: house.count(row) for name, row in TABLES.items()} == before
    assert house.count(ArchiveRow) == 0


def test_what_is_old_is_archived_word_for_word_and_what_is_in_force_stays(house: House) -> None:
    desk = lived(house)
    with house.database.read() as session:
        log = [
            dict(row._mapping)
            for row in session.connection().execute(
                select(table_of(OrderLogRow)).order_by(table_of(OrderLogRow).c.seq)
            )
        ]
    before = desk.judge(house.folder / "judged")
    states = desk.decisions.hysteresis_states(desk.world)
    house.published()
    assert house.run() > 100
    assert house.archived("order_log") == [row for row in log if row["world_id"] == desk.world]
    assert house.count(EvidenceRow) == 3 + 1, "the newest evidence of each strategy"
    assert house.count(OutcomeRow) == 3
    assert house.count(DecisionRow) == 1 + 1
    assert len(house.archived("evidence")) == 3
    assert [item["seq"] for item in house.archived("decision")] == [1, 2]
    assert desk.decisions.hysteresis_states(desk.world) == states
    again = desk.judge(house.folder / "judged")
    assert {name: (item.active, item.weight) for name, item in again.items()} == {
        name: (item.active, item.weight) for name, item in before.items()
    }


def test_the_trail_is_verified_through_its_archives_and_goes_on(house: House) -> None:
    desk = lived(house)
    entries = house.audit.verify(desk.world).entries
    whole = house.audit.page(desk.world, 0, 1000).entries
    assert len(whole) == entries > 20
    house.run()
    assert house.count(AuditRow) < 5, "nothing but what the upkeep itself has recorded"
    found = house.audit.verify(desk.world)
    assert (found.entries, found.orders) == (entries + 1, 20 + 4), "one more, which seals the order log"
    assert house.audit.page(desk.world, 0, 1000).entries[:entries] == whole
    assert house.audit.page(desk.world, entries - 2, 2).entries == whole[-2:]
    desk.end_sessions()
    ordered(desk, 5)
    house.run()
    assert house.audit.verify(desk.world).orders == 24 + 10
    assert house.audit.verify(OUTSIDE_WORLDS).entries > 1, "each archive"


@pytest.mark.parametrize("column", ["body", "at", "reason"])
def test_a_changed_row_of_the_sealed_order_log_is_found(house: House, dsn: str, column: str) -> None:
    desk = lived(house)
    house.run(NOW + timedelta(days=2))
    assert house.audit.verify(desk.world).orders == 24
    with house.database.write("attacker", bookkeeping=True) as tx:
        unprotected(tx.connection, dsn)
        tx.connection.execute(text(f"UPDATE order_log SET {column} = 'x' WHERE kind = 'accepted'"))
    with pytest.raises(QmtlError, match="the order log of w has been changed") as caught:
        house.audit.verify(desk.world)
    assert caught.value.code == "E_AUDIT_BROKEN"
    with pytest.raises(QmtlError, match="E_AUDIT_BROKEN"):
        house.retention.apply(ORDERS, LATER, 60.0)
    assert house.count(OrderLogRow) == 28, "what was changed is not archived"


@pytest.mark.parametrize("change", ["removed", "added"])
def test_a_row_more_or_less_in_the_sealed_order_log_is_found(house: House, dsn: str, change: str) -> None:
    desk = lived(house)
    house.run(NOW + timedelta(days=2))
    log = table_of(OrderLogRow)
    with house.database.write("attacker", bookkeeping=True) as tx:
        unprotected(tx.connection, dsn)
        # Of no order: an order is accepted once.
        row = tx.connection.execute(select(log).where(log.c.kind == "switch").order_by(log.c.seq)).first()
        assert row is not None
        if change == "removed":
            tx.connection.execute(delete(log).where(log.c.seq == row.seq))
        else:
            tx.connection.execute(log.insert().values({**row._mapping, "seq": 0}))
    with pytest.raises(QmtlError, match="E_AUDIT_BROKEN"):
        house.audit.verify(desk.world)


@pytest.mark.parametrize("table", ["audit", "order_log"])
def test_the_database_removes_no_row_that_no_archive_names(house: House, table: str) -> None:
    lived(house)
    row = {"audit": AuditRow, "order_log": OrderLogRow}[table]
    before = house.count(row)
    with pytest.raises(DatabaseError), house.database.write("attacker", bookkeeping=True) as tx:
        tx.connection.execute(text(f"DELETE FROM {table}"))
    assert house.count(row) == before
    house.run()
    desk = Desk.found(house.database)
    ordered(desk, 2)
    before = house.count(row)
    assert before > 0
    with pytest.raises(DatabaseError), house.database.write("attacker", bookkeeping=True) as tx:
        tx.connection.execute(text(f"DELETE FROM {table}"))
    assert house.count(row) == before, "the archives name other rows"


def test_a_segment_with_an_open_order_stays(house: House) -> None:
    desk = Desk(house.database)
    desk.apply("dryrun")
    ordered(desk, 3, cancel=False)
    rows = house.count(OrderLogRow)
    assert house.retention.apply(ORDERS, LATER, 60.0) == (0, False)
    assert house.count(OrderLogRow) == rows
    SqlOrderLog(house.database).cancel(desk.world, CancelRequest(all=True), "olga")
    Desk(house.database, "newest").apply("dryrun")
    house.retention.apply(ORDERS, LATER, 60.0)
    assert len(house.archived("order_log")) == house.audit.verify(desk.world).orders == rows + 3


@pytest.mark.parametrize("damage", ["empty", "cut", "other", "gone"])
def test_nothing_is_removed_where_the_archive_is_not_what_the_table_holds(house: House, damage: str) -> None:
    """Trap 11: an archive step uploaded an empty object, and then removed what it should have kept."""

    class Broken(FolderArtifacts):
        def put(self, hash: str, data: bytes) -> None:
            super().put(hash, data)
            path = self._path(hash)
            if damage == "gone":
                path.unlink()
            else:
                path.write_bytes({"empty": b"", "cut": data[:-9], "other": data[:-9] + b"x" * 9}[damage])

    lived(house)
    house.run(NOW + timedelta(days=2))  # seals the order log
    house.published()
    before = {name: house.count(row) for name, row in TABLES.items()}
    broken = house.over(Broken(house.folder))
    for kind in (ORDERS, AUDIT, "decisions", "submissions", "events"):
        with pytest.raises(QmtlError) as caught:
            broken.apply(kind, LATER, 60.0)
        assert caught.value.code == "E_ARCHIVE"
    assert {name: house.count(row) for name, row in TABLES.items()} == before
    assert house.count(ArchiveRow) == 0


@pytest.mark.parametrize("kind", [ORDERS, AUDIT, "decisions"])
def test_after_a_crash_between_archive_and_removal_each_row_is_archived_once(
    house: House, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    desk = lived(house)
    modules = {ORDERS: "order_log", AUDIT: "audit_trail", "decisions": "records"}
    sources = {ORDERS: "order_log", AUDIT: "audit", "decisions": "decision"}

    class Crash(BaseException):
        pass

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(f"activities.retention.{modules[kind]}.require_all_removed", crash)
        with pytest.raises(Crash):
            house.retention.apply(kind, LATER, 60.0)
    assert house.count(ArchiveRow) == 0
    assert house.retention.apply(kind, LATER, 60.0)[0] > 0
    numbers = [row["seq"] for row in house.archived(sources[kind])]
    assert len(numbers) == len(set(numbers)) > 0
    house.audit.verify(desk.world)


def test_two_that_run_at_once_archive_each_row_once(house: House) -> None:
    desk = lived(house)

    def run(kind: str) -> int:
        try:
            return house.retention.apply(kind, LATER, 60.0)[0]
        except QmtlError as error:
            if error.code != "E_ARCHIVE":
                raise
            return 0

    for kind in house.retention.kinds:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, [kind, kind]))
        house.retention.apply(kind, LATER, 60.0)
    for table, key in (("order_log", "seq"), ("decision", "seq"), ("audit", "seq"), ("evidence", "seq")):
        numbers = [row[key] for row in house.archived(table)]
        assert len(numbers) == len(set(numbers)) > 0, table
    house.audit.verify(desk.world)


def test_events_wait_for_the_relay_and_dead_letters_for_an_operator(house: House) -> None:
    Desk(house.database)
    waiting = house.count(OutboxRow)
    assert house.retention.apply("events", LATER, 60.0)[0] == 0
    house.published()
    with house.database.write("relay", bookkeeping=True) as tx:
        tx.connection.execute(text("INSERT INTO dead_letter (seq, reason, at) VALUES (2, 'r', '2024')"))
    house.retention.apply("events", LATER, 60.0)
    with house.database.read() as session:
        left = session.connection().execute(text("SELECT seq FROM outbox ORDER BY seq")).scalars().all()
    assert left[0] == 2
    assert len(left) < waiting


def test_an_event_that_came_after_a_dead_letter_stays_with_it(house: House) -> None:
    """Without it, a retry would publish the older state as the newest."""
    Desk(house.database)
    for _ in range(2):
        with house.database.write("test") as tx:
            tx.record(RecordedChange("topic.told", "", "topic"))
            tx.record(RecordedChange("topic.told", "", "another"))
    house.published()
    Desk(house.database, "newest")
    house.published()
    with house.database.write("relay", bookkeeping=True) as tx:
        letter = "SELECT min(seq), 'r', '2024' FROM outbox WHERE subject = 'topic'"
        tx.connection.execute(text(f"INSERT INTO dead_letter (seq, reason, at) {letter}"))
    house.retention.apply("events", LATER, 60.0)
    with house.database.read() as session:
        left = session.connection().execute(text("SELECT subject FROM outbox")).scalars().all()
    assert left.count("topic") == 2
    assert left.count("another") == 0


def test_evidence_is_retained_until_what_replaced_it_is_old(house: House) -> None:
    """A decision of yesterday rests on evidence from before the limit; whoever replays it reads both."""
    desk = lived(house)
    first = table_of(EvidenceRow).c.seq <= 3
    house.age(EvidenceRow, "created_at", 500, first)
    with house.database.read() as session:
        evidence = table_of(EvidenceRow)
        old = session.connection().execute(select(evidence.c.run_id).where(first)).scalars().all()
    house.age(OutcomeRow, "created_at", 500, table_of(OutcomeRow).c.run_id.in_(old))
    assert house.retention.apply("submissions", NOW, 60.0) == (0, False)
    assert len(desk.decisions.history(desk.world)[-1][2]) == 3
    house.age(EvidenceRow, "created_at", 450, ~first)
    assert house.retention.apply("submissions", NOW, 60.0)[0] == 0, (
        "its outcome is the newest before the limit"
    )
    house.age(OutcomeRow, "created_at", 450, table_of(OutcomeRow).c.run_id.not_in(old))
    assert house.retention.apply("submissions", NOW, 60.0)[0] > 0
    assert house.count(EvidenceRow) == 3 + 1


def test_the_same_returns_count_once_although_their_first_evidence_is_archived(house: House) -> None:
    desk = Desk(house.database)
    (strategy,) = desk.strategies
    for _ in range(2):
        desk.evidence(strategy, returns_hash="same")
    house.outcomes(desk)
    house.run()
    desk.evidence(strategy, returns_hash="same")
    with house.database.read() as session:
        evidence = table_of(EvidenceRow)
        found = session.connection().execute(select(evidence.c.seq, evidence.c.first_seq)).all()
    assert [tuple(row) for row in found] == [(3, 1), (4, 1)]


def test_sessions_keep_what_currency_is_measured_by(house: House) -> None:
    """The newest bar of a strategy, which an older session than the newest may have reported."""
    desk = Desk(house.database)
    bars = ("2024-01-01", "2024-01-04", "2024-01-03", "2024-01-02")
    found = []
    for bar in bars:
        found.append(desk.session())
        house.sql("UPDATE session SET newest_bar = :bar WHERE session_id = :found", bar=bar, found=found[-1])
        desk.end_sessions()
    house.sql("UPDATE session SET session_id = '0' WHERE session_id = :found", found=found[1])
    running = desk.session()
    assert house.retention.apply("sessions", LATER, 60.0)[0] == 3
    assert set(house.sql("SELECT session_id FROM session")) == {"0", running}


@pytest.mark.parametrize("days", [{"decisions_days": 29}, {"decisions_days": 500}, {"events_days": 0}])
def test_a_time_that_would_lose_what_is_needed_is_refused(days: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"decisions_days|events_days"):
        RetentionSettings(**days)


def test_every_rule_has_its_time_and_every_row_its_file() -> None:
    values: dict[type, list[object]] = {
        str: ["", "ü\n", "x" * 100_000],
        int: [0, -(2**62), 2**31],
        bool: [True, False, True],
        float: [0.1, -1e300, 5e-324],
    }
    for rule in RULES.values():
        assert rule.days(RetentionSettings()) > 0
        for part in rule.parts:
            rows = [
                {  # SQLModel's type of text names no type of Python
                    column.name: values.get(column.type.python_type, values[str])[number]
                    for column in part.table.columns
                }
                for number in range(3)
            ]
            rows += [
                {column.name: None if column.nullable else row[column.name] for column in part.table.columns}
                for row in rows
            ]
            assert decode(encode(part.table, rows)) == rows


def test_many_small_chains_share_a_file(house: House) -> None:
    with house.database.write("test") as tx:
        for number in range(300):
            tx.record(RecordedChange("world.created", f"home{number}", f"home{number}"))
    house.run()
    files = {row["chain"] for row in house.archived("audit")}
    assert len(files) >= 300
    with house.database.read() as session:
        archive = table_of(ArchiveRow)
        query = select(func.count(archive.c.artifact.distinct())).where(archive.c.source == "audit")
        assert session.connection().execute(query).scalar_one() <= 2
    assert house.audit.verify("home7").entries == 1


def test_no_number_is_given_twice(house: House) -> None:
    """SQLite gives the largest number again once its row is gone: later rows were neither sealed nor read."""
    desk = Desk(house.database)
    desk.apply("dryrun")
    ordered(desk, 5)
    for _ in range(2):
        house.run()
        desk.end_sessions()
        ordered(desk, 5)
    house.run()
    Desk(house.database, "newest").apply("dryrun")
    house.run()
    assert house.audit.verify(desk.world).orders == 4 + 3 * 10
