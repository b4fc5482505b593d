"""Worlds that have lived, with what archives their rows: what the tests of retention begin with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select, text, update

from activities.artifacts.folder import FolderArtifacts
from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.retention.archives import Archives
from activities.retention.audit import SqlAudit
from activities.retention.parquet import decode
from activities.retention.upkeep import RowRetention
from activities.settings import RetentionSettings
from activities.storage.database import Database
from activities.storage.tables import (
    ArchiveRow,
    AuditRow,
    DecisionRow,
    EvidenceRow,
    OrderLogRow,
    OutboxRow,
)
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.orders import CancelRequest
from qmtl_sdk.contracts.submission import SubmissionOutcome
from tests.support.desk import Desk

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=500)
TABLES = {"audit": AuditRow, "order_log": OrderLogRow, "outbox": OutboxRow, "decision": DecisionRow}


@dataclass
class House:
    database: Database
    folder: Path

    def __post_init__(self) -> None:
        self.artifacts = FolderArtifacts(self.folder)
        self.retention = self.over(self.artifacts)
        self.audit = SqlAudit(self.database, Archives(self.artifacts))

    def over(self, artifacts: FolderArtifacts) -> RowRetention:
        """Retention that takes any moment for now: the tests name moments that lie ahead of the clock."""
        clock = lambda: NOW + timedelta(days=5000)  # noqa: E731
        return RowRetention(self.database, Archives(artifacts), RetentionSettings(), clock)

    def run(self, now: datetime = LATER) -> int:
        """One run of the upkeep. Returns how many rows it archived."""
        return sum(self.retention.apply(kind, now, 60.0)[0] for kind in self.retention.kinds)

    def count(self, row: type) -> int:
        with self.database.read() as session:
            return int(
                session.connection().execute(select(func.count()).select_from(table_of(row))).scalar_one()
            )

    def archived(self, source: str) -> list[dict[str, object]]:
        """The rows in the archives of a table, oldest first."""
        with self.database.read() as session:
            query = select(table_of(ArchiveRow)).where(table_of(ArchiveRow).c.source == source)
            found = session.connection().execute(query.order_by(table_of(ArchiveRow).c.seq)).all()
        files = dict.fromkeys(row.artifact for row in found)
        return [row for artifact in files for row in self.rows(artifact)]

    def rows(self, artifact: str) -> list[dict[str, Any]]:
        """The rows of an archive. (Any: the values of whatever table.)"""
        return decode(self.artifacts.get(artifact))

    def published(self) -> None:
        """The relay has published every event."""
        with self.database.write("relay", bookkeeping=True) as tx:
            tx.connection.execute(update(table_of(OutboxRow)).values(published_at="2024"))

    def outcomes(self, desk: Desk) -> None:
        """Every run of a world has ended."""
        with self.database.read() as session:
            evidence = table_of(EvidenceRow)
            runs = session.connection().execute(select(evidence.c.run_id, evidence.c.strategy_id)).all()
        for run_id, strategy_id in runs:
            outcome = SubmissionOutcome(
                run_id=run_id, world_id=desk.world, strategy_id=strategy_id, status="failed"
            )
            desk.runs.save_outcome(outcome)

    def age(self, row: type, column: str, days: float, *where: object) -> None:
        """Make rows older than they are, in tables that allow it."""
        table = table_of(row)
        with self.database.write("test", bookkeeping=True) as tx:
            at = (NOW - timedelta(days=days)).isoformat(timespec="microseconds")
            tx.connection.execute(update(table).where(*where).values({column: at}))  # type: ignore[arg-type]

    def sql(self, statement: str, **values: Any) -> Sequence[Any]:
        """Run a statement as someone who writes past QMTL. (Any: whatever values and rows.)"""
        with self.database.write("attacker", bookkeeping=True) as tx:
            found = tx.connection.execute(text(statement), values)
            return found.scalars().all() if found.returns_rows else []


def ordered(desk: Desk, count: int, cancel: bool = True) -> None:
    """Orders of the first strategy, accepted and cancelled."""
    session = desk.session()
    orders = [desk.order(session, desk.epoch) for _ in range(count)]
    found = OrderAcceptance(desk.database).publish(orders, desk.caller)
    assert all(item.accepted for item in found)
    if cancel:
        SqlOrderLog(desk.database).cancel(desk.world, CancelRequest(all=True), "olga")


def lived(house: House) -> Desk:
    """A world that has lived: orders, two sets of evidence, two decisions."""
    desk = Desk(house.database, strategies=3)
    desk.apply("dryrun")
    ordered(desk, 10)
    desk.end_sessions()
    for strategy in desk.strategies:
        desk.evidence(strategy, sharpe=2.0, returns_hash="second")
    desk.judge(house.folder / "judged")
    house.outcomes(desk)
    house.published()
    Desk(house.database, "newest").apply("dryrun")  # the newest row of a table stays
    return desk


def unprotected(connection: Connection, dsn: str, table: str = "order_log") -> None:
    """As someone who may change the schema can."""
    names = [f"{table}_no_update", f"{table}_no_delete"]
    if dsn.startswith("postgres"):
        names = [f"{name} ON {table}" for name in (f"{table}_append_only", f"{table}_archived")]
    for name in names:
        connection.execute(text(f"DROP TRIGGER {name}"))
