"""The commit log in the database."""

from sqlalchemy import func
from sqlmodel import col, select

from activities.storage.database import Database
from activities.storage.tables import CommitLogRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from activities.submissions.store import LogEntry
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck

# The condition of the index `commit_log_waiting`.
_WAITING = (col(CommitLogRow.run_id).is_(None), col(CommitLogRow.refused).is_(None))


class SqlCommitLog:
    """Every acknowledged submission, written before anything else happens to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, submit: StrategySubmit, actor: str) -> LogEntry:
        body_hash = hash_of(submit.json_dict())
        with self._database.write(actor) as tx:
            row = CommitLogRow(
                idempotency_key=submit.idempotency_key,
                actor=actor,
                world_id=submit.world_id,
                strategy_id=submit.dag.strategy_id,
                body_hash=body_hash,
                body=submit.model_dump_json(),
                received_at=utc_now(),
            )
            if tx.insert_new([row]):
                tx.record(
                    RecordedChange(
                        "submission.received",
                        submit.world_id,
                        row.strategy_id,
                        after={"body_hash": body_hash},
                        correlation_id=submit.idempotency_key,
                    )
                )
                return LogEntry(
                    idempotency_key=row.idempotency_key, world_id=row.world_id, strategy_id=row.strategy_id
                )
            found = self._row(tx, submit.idempotency_key)
            if (found.body_hash, found.actor) != (body_hash, actor):
                raise QmtlError(
                    "E_IDEMPOTENCY_KEY_REUSED",
                    f"the idempotency key {submit.idempotency_key!r} was used with another body before, "
                    "or by someone else",
                    "use a new key for a new submission",
                )
            return _entry(found)

    def body(self, idempotency_key: str) -> StrategySubmit:
        with self._database.read() as session:
            row = session.exec(
                select(CommitLogRow).where(CommitLogRow.idempotency_key == idempotency_key)
            ).first()
        if row is None:
            raise QmtlError(
                "E_FOREIGN_STORE",
                f"the commit log of this worker's store has no submission {idempotency_key!r}",
                "check gateway.database_dsn of this worker",
            )
        return StrategySubmit.model_validate_json(row.body)

    def record_admission(
        self, tx: Transaction, idempotency_key: str, run_id: str, ack: SubmissionAck
    ) -> None:
        row = self._row(tx, idempotency_key)
        lease_id = ack.lease.lease_id if ack.lease else ""
        if row.run_id is not None:
            self._record_lease(tx, row, lease_id)
            return
        row.run_id = run_id
        row.ack = ack.model_dump_json()
        row.lease_id = lease_id
        tx.session.add(row)
        after = {"run_id": run_id, "nodes_new": ack.nodes_new, "nodes_reused": ack.nodes_reused}
        tx.record(
            RecordedChange(
                "submission.admitted",
                row.world_id,
                row.strategy_id,
                after=after,
                correlation_id=idempotency_key,
            )
        )

    @staticmethod
    def _record_lease(tx: Transaction, row: CommitLogRow, lease_id: str) -> None:
        """Record a lease that was granted after the admission, because a recovery had requested none."""
        if not lease_id or row.lease_id == lease_id:
            return
        row.lease_id = lease_id
        tx.session.add(row)
        tx.record(
            RecordedChange(
                "submission.leased",
                row.world_id,
                row.strategy_id,
                after={"run_id": row.run_id, "lease_id": lease_id, "actor": row.actor},
                correlation_id=row.idempotency_key,
            )
        )

    def require_lease_holder(self, run_id: str, lease_id: str, actor: str) -> None:
        query = select(CommitLogRow.actor).where(
            CommitLogRow.run_id == run_id, CommitLogRow.lease_id == lease_id
        )
        with self._database.read() as session:
            holders = set(session.exec(query))
        if not holders:
            raise QmtlError(
                "E_LEASE_UNKNOWN", f"there is no lease {lease_id[:80]!r}", "use the lease_id of the ack"
            )
        if actor not in holders:
            raise QmtlError(
                "E_LEASE_HOLDER",
                "the lease was granted to someone else, who alone may act under it",
                "submit the strategy yourself: you get a lease once no runner computes it",
            )

    def refuse(self, idempotency_key: str, code: str) -> None:
        with self._database.write("submission") as tx:
            row = self._row(tx, idempotency_key)
            if row.run_id is not None or row.refused is not None:
                return
            row.refused = code
            tx.session.add(row)
            tx.record(
                RecordedChange(
                    "submission.refused",
                    row.world_id,
                    row.strategy_id,
                    after={"code": code},
                    correlation_id=idempotency_key,
                )
            )

    def waiting(self, most: int) -> list[str]:
        query = select(CommitLogRow.idempotency_key).where(*_WAITING).order_by(col(CommitLogRow.seq))
        with self._database.read() as session:
            return list(session.exec(query.limit(most)))

    def count_waiting(self, most: int) -> int:
        rows = select(CommitLogRow.seq).where(*_WAITING).limit(most).subquery()
        with self._database.read() as session:
            return session.exec(select(func.count()).select_from(rows)).one()

    @staticmethod
    def _row(tx: Transaction, idempotency_key: str) -> CommitLogRow:
        return tx.session.exec(
            select(CommitLogRow).where(CommitLogRow.idempotency_key == idempotency_key).with_for_update()
        ).one()


def _entry(row: CommitLogRow) -> LogEntry:
    ack = SubmissionAck.model_validate_json(row.ack) if row.ack else None
    return LogEntry(
        idempotency_key=row.idempotency_key,
        world_id=row.world_id,
        strategy_id=row.strategy_id,
        run_id=row.run_id,
        ack=ack,
        refused=row.refused,
    )
