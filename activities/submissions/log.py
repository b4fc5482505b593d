"""The commit log in the database."""

from sqlmodel import col, select

from activities.storage.database import Database
from activities.storage.tables import CommitLogRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from activities.submissions.store import LogEntry
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck


class SqlCommitLog:
    """Every acknowledged submission, written before anything else happens to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def append(self, submit: StrategySubmit, actor: str) -> LogEntry:
        body_hash = hash_of(submit.json_dict())
        with self._database.write(actor) as tx:
            row = CommitLogRow(
                idempotency_key=submit.idempotency_key,
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
            if found.body_hash != body_hash:
                raise QmtlError(
                    "E_IDEMPOTENCY_KEY_REUSED",
                    f"the idempotency key {submit.idempotency_key!r} was used with another body before",
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
                "E_STRATEGY_UNKNOWN",
                f"the commit log has no submission {idempotency_key!r}",
                "this worker may serve another store",
            )
        return StrategySubmit.model_validate_json(row.body)

    def record_admission(self, idempotency_key: str, run_id: str, ack: SubmissionAck) -> None:
        with self._database.write("submission") as tx:
            row = self._row(tx, idempotency_key)
            if row.run_id is not None:
                return
            row.run_id = run_id
            row.ack = ack.model_dump_json()
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

    def waiting(self) -> list[LogEntry]:
        with self._database.read() as session:
            query = (
                select(CommitLogRow)
                .where(col(CommitLogRow.run_id).is_(None), col(CommitLogRow.refused).is_(None))
                .order_by(col(CommitLogRow.seq))
            )
            return [_entry(row) for row in session.exec(query)]

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
