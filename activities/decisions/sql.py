"""Decisions in the database: envelopes, their inputs, and the hysteresis state after them."""

from datetime import datetime, timedelta

from sqlmodel import Session, col, select

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.evidence import candidate_of, newest_evidence
from activities.decisions.store import DecisionInputs, StoredDecision
from activities.fence.activations import activation_sequence, apply_decision, decided_activations
from activities.fence.rules import OPEN
from activities.fence.state import locked_fence, set_decision
from activities.storage.database import Database
from activities.storage.tables import (
    BindingRow,
    DecisionInputsRow,
    DecisionRow,
    EvaluationRequestRow,
    EvidenceRow,
    HysteresisRow,
)
from activities.storage.transactions import RecordedChange, utc_now, utc_text
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.domains import domain_of


class SqlDecisionStore:
    """Stores decisions with their inputs, and reads the evidence and hysteresis states for the next one."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save_decision(
        self,
        request_ids: tuple[str, ...],
        envelope: DecisionEnvelope,
        run_id: str,
        requested_by: str = "",
        inputs: DecisionInputs | None = None,
    ) -> StoredDecision:
        """Store a decision as the answer to these requests, and apply what it changes without an apply.

        Idempotent: a request that was answered keeps its answer. `requested_by` is the person who requested
        the decision, if any.
        """
        # Orders wait for the fence, and with SQLite for the only writer: what takes long comes before.
        known = inputs or DecisionInputs()
        body, inputs_body = envelope.model_dump_json(), known.model_dump_json(exclude={"after"})
        states = _changed_states(envelope.world_id, known)
        with self._database.read() as session:
            wanted = decided_activations(session, envelope, run_id)
        with self._database.write(requested_by or "evaluation") as tx:
            tx.lock(f"world:{envelope.world_id}")
            done = self._answered(tx.session, request_ids)
            fresh = [request_id for request_id in request_ids if request_id not in done]
            if not fresh:
                return next(iter(done.values()))
            row = DecisionRow(
                world_id=envelope.world_id,
                policy_version=envelope.policy_version,
                etag=envelope.etag,
                body=body,
                created_at=utc_now(),
            )
            tx.session.add(row)
            tx.session.flush()
            assert row.seq is not None  # given by the flush
            for request_id in fresh:
                tx.session.add(
                    EvaluationRequestRow(
                        request_id=request_id, world_id=envelope.world_id, decision_seq=row.seq
                    )
                )
            tx.session.add(
                DecisionInputsRow(decision_seq=row.seq, world_id=envelope.world_id, body=inputs_body)
            )
            tx.session.flush()
            tx.upsert_all(states)
            if wanted.sequence != activation_sequence(tx.session, envelope.world_id):
                wanted = decided_activations(tx.session, envelope, run_id)
            fence = locked_fence(tx, envelope.world_id)
            until = envelope.decided_at + timedelta(seconds=envelope.ttl)
            set_decision(tx, fence, utc_text(until))
            # An apply that holds the world applies the newest decision itself, when it unfreezes.
            if fence.state == OPEN:
                apply_decision(tx, fence, envelope, run_id, wanted)
            tx.record(_decision_made(envelope, row.seq, run_id, requested_by))
            return StoredDecision(seq=row.seq, envelope=envelope)

    def hysteresis_states(self, world_id: str) -> dict[str, HysteresisState]:
        """Read the hysteresis state of each strategy, by strategy_id."""
        with self._database.read() as session:
            rows = session.exec(select(HysteresisRow).where(HysteresisRow.world_id == world_id))
            return {row.strategy_id: HysteresisState.model_validate_json(row.body) for row in rows}

    def history(
        self, world_id: str, since: datetime | None = None, limit: int = 1000
    ) -> list[tuple[DecisionEnvelope, DecisionInputs, tuple[Candidate, ...]]]:
        """List the newest decisions, oldest first, each with its inputs and its candidates.

        A decision that rests on evidence that has been archived is left out.
        """
        query = select(DecisionRow, DecisionInputsRow).where(
            DecisionRow.world_id == world_id, col(DecisionInputsRow.decision_seq) == col(DecisionRow.seq)
        )
        newest_first = (col(DecisionRow.created_at).desc(), col(DecisionRow.seq).desc())
        if since is not None:
            query = query.where(DecisionRow.created_at >= since.isoformat(timespec="microseconds"))
        with self._database.read() as session:
            found = [
                (
                    DecisionEnvelope.model_validate_json(row.body),
                    DecisionInputs.model_validate_json(stored.body),
                )
                for row, stored in session.exec(query.order_by(*newest_first).limit(limit))
            ]
            seqs = {seq for _, inputs in found for seq in inputs.evidence}
            rows = session.exec(
                select(EvidenceRow, BindingRow).where(
                    col(EvidenceRow.seq).in_(seqs),
                    BindingRow.world_id == EvidenceRow.world_id,
                    BindingRow.strategy_id == EvidenceRow.strategy_id,
                )
            ).all()
            candidates = {row.seq: candidate_of(row, binding) for row, binding in rows}
            return [
                (envelope, inputs, tuple(_at(candidates[seq], inputs) for seq in inputs.evidence))
                for envelope, inputs in reversed(found)
                if candidates.keys() >= set(inputs.evidence)
            ]

    def answered(self, request_ids: tuple[str, ...]) -> dict[str, StoredDecision]:
        """Find the decisions that answered these requests, by request_id."""
        with self._database.read() as session:
            return self._answered(session, request_ids)

    def answer(self, request_id: str) -> DecisionEnvelope | None:
        """Find the decision that answered a request; None where it was not answered."""
        stored = self.answered((request_id,)).get(request_id)
        return stored.envelope if stored else None

    @staticmethod
    def _answered(session: Session, request_ids: tuple[str, ...]) -> dict[str, StoredDecision]:
        requests = session.exec(
            select(EvaluationRequestRow).where(col(EvaluationRequestRow.request_id).in_(request_ids))
        ).all()
        rows = {
            row.seq: row
            for row in session.exec(
                select(DecisionRow).where(col(DecisionRow.seq).in_({item.decision_seq for item in requests}))
            )
        }
        decisions = {
            seq: StoredDecision(seq=seq, envelope=DecisionEnvelope.model_validate_json(row.body))
            for seq, row in rows.items()
            if seq is not None
        }
        return {item.request_id: decisions[item.decision_seq] for item in requests}

    def decision(self, world_id: str) -> DecisionEnvelope | None:
        """Read the newest decision of a world."""
        with self._database.read() as session:
            return newest_decision(session, world_id)

    def decisions(self, world_id: str, limit: int) -> list[DecisionEnvelope]:
        """List the newest decisions of a world, newest first."""
        with self._database.read() as session:
            return newest_decisions(session, world_id, limit)

    def candidates(self, world_id: str, now: datetime) -> tuple[Candidate, ...]:
        """List the newest evidence of every strategy of a world that has any. `now` is the world's time."""
        with self._database.read() as session:
            return newest_evidence(session, world_id, now)


def _changed_states(world_id: str, inputs: DecisionInputs) -> list[HysteresisRow]:
    """List the hysteresis states that a decision changes."""
    return [
        HysteresisRow(world_id=world_id, strategy_id=strategy_id, body=state.model_dump_json())
        for strategy_id, state in inputs.after.items()
        if state != inputs.before.get(strategy_id)
    ]


def _decision_made(envelope: DecisionEnvelope, seq: int, run_id: str, requested_by: str) -> RecordedChange:
    """Describe a decision, without what it says of strategies that are not active."""
    domain = domain_of(envelope.effective_mode)
    what = {
        "active": {item.strategy_id: item.weight for item in envelope.strategies if item.active},
        "etag": envelope.etag,
        "ttl": envelope.ttl,
        **envelope.model_dump(mode="json", include={"decided_at"}),
    }
    return RecordedChange(
        "decision.made",
        envelope.world_id,
        str(seq),
        after={**what, "requested_by": requested_by},
        correlation_id=run_id,
        event="decision_updated",
        about=envelope.world_id,
        data={
            **what,
            "world_id": envelope.world_id,
            "policy_version": envelope.policy_version,
            "effective_mode": envelope.effective_mode,
            "execution_domain": domain.value if domain else None,
            "reason": envelope.reason,
        },
    )


def _at(candidate: Candidate, inputs: DecisionInputs) -> Candidate:
    """Return the candidate with the newest bar that the decision knew of."""
    return candidate.model_copy(update={"newest_bar": inputs.newest_bars.get(candidate.strategy_id)})


def newest_decisions(session: Session, world_id: str, limit: int) -> list[DecisionEnvelope]:
    """List the newest decisions of a world, newest first."""
    query = (
        select(DecisionRow)
        .where(DecisionRow.world_id == world_id)
        .order_by(col(DecisionRow.seq).desc())
        .limit(limit)
    )
    return [DecisionEnvelope.model_validate_json(row.body) for row in session.exec(query)]


def newest_decision(session: Session, world_id: str) -> DecisionEnvelope | None:
    """Read the newest decision of a world."""
    return next(iter(newest_decisions(session, world_id, 1)), None)
