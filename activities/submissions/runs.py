"""Runs of submissions in the database: context, evidence and outcome."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import and_
from sqlmodel import Session, col, func, select

from activities.messages.submission import EvidenceBody, NodeValidation, RunContextBody
from activities.storage.database import Database
from activities.storage.tables import (
    ActivationRow,
    BindingRow,
    EvidenceRow,
    OutcomeRow,
    RunContextRow,
    ValidationRow,
    WorldNodeRow,
)
from activities.storage.transactions import RecordedChange, Transaction, utc_now, utc_text
from qmtl_sdk.contracts.submission import SubmissionOutcome


class SqlRunStore:
    """Runs of submissions. Everything about a run is stored once; a repetition returns what is stored."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def begin_run(self, tx: Transaction, run: RunContextBody) -> RunContextBody:
        """Bind the strategy to the world and store the run's context."""
        row = RunContextRow(
            run_id=run.run_id,
            world_id=run.world_id,
            strategy_id=run.strategy_id,
            body=run.model_dump_json(),
            created_at=utc_now(),
        )
        if not tx.insert_new([row]):
            found = tx.session.get(RunContextRow, run.run_id)
            assert found is not None  # the insert found it there
            return RunContextBody.model_validate_json(found.body)
        bound = tx.insert_new(
            [
                BindingRow(
                    world_id=run.world_id,
                    strategy_id=run.strategy_id,
                    name=run.name,
                    created_at=row.created_at,
                )
            ]
        )
        after = {"context": run.context.json_dict(), "newly_bound": bool(bound)}
        tx.record(
            RecordedChange("run.begun", run.world_id, run.strategy_id, after=after, correlation_id=run.run_id)
        )
        return run

    def run(self, run_id: str) -> RunContextBody | None:
        """Read the context of a run."""
        with self._database.read() as session:
            row = session.get(RunContextRow, run_id)
            return RunContextBody.model_validate_json(row.body) if row else None

    def newest_run(self, strategy_id: str, world_id: str | None) -> RunContextBody | None:
        """Read the newest run of a strategy, in any world unless one is given."""
        with self._database.read() as session:
            query = select(RunContextRow).where(RunContextRow.strategy_id == strategy_id)
            if world_id is not None:
                query = query.where(RunContextRow.world_id == world_id)
            row = session.exec(query.order_by(col(RunContextRow.created_at).desc()).limit(1)).first()
            return RunContextBody.model_validate_json(row.body) if row else None

    def save_evidence(
        self, evidence: EvidenceBody, validations: Sequence[NodeValidation] = ()
    ) -> EvidenceBody:
        """Store the evidence of a run, and the validations of the strategy's nodes that follow from it."""
        with self._database.write("evaluation") as tx:
            row = EvidenceRow(
                run_id=evidence.run_id,
                world_id=evidence.world_id,
                strategy_id=evidence.strategy_id,
                body=evidence.model_dump_json(),
                kind=evidence.kind,
                as_of=_measured_until(evidence),
                content_hash=evidence.content_hash,
                first_seq=_first_seq(tx.session, evidence),
                created_at=utc_now(),
            )
            if not tx.insert_new([row]):
                return evidence_of(
                    tx.session.exec(select(EvidenceRow).where(EvidenceRow.run_id == evidence.run_id)).one()
                )
            # In the order of their keys, as in `set_node_states`: strategies share nodes.
            for item in sorted(validations, key=lambda item: item.node_id):
                found = {
                    "world_id": evidence.world_id,
                    "node_id": item.node_id,
                    "execution_domain": item.execution_domain,
                    "eval_key": item.eval_key,
                }
                state = "invalid" if evidence.error_code else "valid"
                tx.upsert(WorldNodeRow(**found, state=state, updated_at=utc_now()))
                tx.upsert(
                    ValidationRow(
                        **found,
                        result=state,
                        body=evidence.model_dump_json(include={"run_id", "error_code"}),
                        created_at=utc_now(),
                    )
                )
            after = {
                "metrics": evidence.metrics,
                "error_code": evidence.error_code,
                "returns": evidence.returns_hash,
            }
            tx.record(
                RecordedChange(
                    "evidence.saved",
                    evidence.world_id,
                    evidence.strategy_id,
                    after=after,
                    correlation_id=evidence.run_id,
                )
            )
            return evidence

    def validated(self, checked: Sequence[NodeValidation], validation_id: str) -> EvidenceBody | None:
        """Find evidence of the same returns under the same EvalKeys; None where there is none."""
        keys = [item.eval_key for item in checked]
        query = select(ValidationRow.body).where(
            col(ValidationRow.eval_key).in_(keys), ValidationRow.result == "valid"
        )
        with self._database.read() as session:
            runs = [str(json.loads(body)["run_id"]) for body in session.exec(query)]
        if not keys or len(runs) < len(keys):
            return None
        # Strategies share nodes, so the newest run of each may be another strategy's.
        for run_id in dict.fromkeys(runs):
            found = self.evidence(run_id)
            if found is not None and found.validation_id == validation_id:
                return found
        return None

    def evidence(self, run_id: str) -> EvidenceBody | None:
        """Read the evidence of a run."""
        with self._database.read() as session:
            row = session.exec(select(EvidenceRow).where(EvidenceRow.run_id == run_id)).first()
            return evidence_of(row) if row else None

    def save_outcome(self, outcome: SubmissionOutcome) -> SubmissionOutcome:
        """Store how a run ended."""
        with self._database.write("submission") as tx:
            row = OutcomeRow(
                run_id=outcome.run_id,
                world_id=outcome.world_id,
                strategy_id=outcome.strategy_id,
                body=outcome.model_dump_json(),
                created_at=utc_now(),
            )
            if not tx.insert_new([row]):
                found = tx.session.exec(select(OutcomeRow).where(OutcomeRow.run_id == outcome.run_id)).one()
                return SubmissionOutcome.model_validate_json(found.body)
            after = {
                "status": outcome.status,
                "decision": outcome.decision.etag if outcome.decision else None,
                "error_code": outcome.error_code,
            }
            tx.record(
                RecordedChange(
                    "submission.concluded",
                    outcome.world_id,
                    outcome.strategy_id,
                    after=after,
                    correlation_id=outcome.run_id,
                )
            )
            return outcome

    def seconds_to_activation(self, newest: int) -> list[float]:
        """Read how long it took to decide the newest submissions, as far as their strategies are active."""
        with self._database.read() as session:
            newest_seq = session.exec(select(func.max(OutcomeRow.seq))).one() or 0
            last = select(OutcomeRow).where(col(OutcomeRow.seq) > newest_seq - newest).subquery()
            same = (
                col(ActivationRow.world_id) == last.c.world_id,
                col(ActivationRow.strategy_id) == last.c.strategy_id,
            )
            query = (
                select(RunContextRow.created_at, last.c.created_at)
                .join(last, last.c.run_id == col(RunContextRow.run_id))
                .join(ActivationRow, and_(*same))
                .where(col(ActivationRow.active).is_(True))
            )
            found = session.exec(query).all()
        times = [(datetime.fromisoformat(begun), datetime.fromisoformat(ended)) for begun, ended in found]
        return [(ended - begun).total_seconds() for begun, ended in times]

    def outcome(self, run_id: str) -> SubmissionOutcome | None:
        """Read how a run ended; None while it runs."""
        with self._database.read() as session:
            row = session.exec(select(OutcomeRow).where(OutcomeRow.run_id == run_id)).first()
            return SubmissionOutcome.model_validate_json(row.body) if row else None


def _measured_until(evidence: EvidenceBody) -> str:
    """Return the `as_of` of measured evidence as the table has it; empty for other kinds.

    Until when data of an author's own reaches, the author says freely.
    """
    if evidence.kind != "measured" or evidence.as_of is None:
        return ""
    return utc_text(datetime.fromisoformat(evidence.as_of).astimezone(UTC))


def _first_seq(session: Session, evidence: EvidenceBody) -> int | None:
    """Find the first evidence of the strategy with the same content; None where this is the first."""
    # The first one itself may have been archived.
    query = select(func.min(func.coalesce(EvidenceRow.first_seq, EvidenceRow.seq))).where(
        EvidenceRow.world_id == evidence.world_id,
        EvidenceRow.strategy_id == evidence.strategy_id,
        EvidenceRow.content_hash == evidence.content_hash,
        EvidenceRow.kind == evidence.kind,
        EvidenceRow.run_id != evidence.run_id,
    )
    return session.exec(query).one()


def evidence_of(row: EvidenceRow) -> EvidenceBody:
    """Convert a row of evidence."""
    return EvidenceBody.model_validate_json(row.body)
