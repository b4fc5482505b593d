"""Evidence records: read the newest evidence of each strategy for a judgment."""

from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from activities.decisions.candidate import Candidate
from activities.messages.submission import EvidenceBody
from activities.storage.tables import BindingRow, EvidenceRow
from activities.submissions.runs import evidence_of


def newest_evidence(session: Session, world_id: str) -> tuple[Candidate, ...]:
    """Read the newest evidence of every strategy of a world that has any, in the order of their bindings."""
    # One index look-up for each strategy: older evidence is never read.
    other = aliased(EvidenceRow)
    of_strategy = select(other.seq).where(
        other.world_id == BindingRow.world_id,
        other.strategy_id == BindingRow.strategy_id,
        col(other.shadow).is_(False),
    )
    newest = of_strategy.order_by(col(other.seq).desc()).limit(1).correlate(BindingRow).scalar_subquery()
    query = select(EvidenceRow, BindingRow).where(
        BindingRow.world_id == world_id,
        EvidenceRow.world_id == BindingRow.world_id,
        EvidenceRow.strategy_id == BindingRow.strategy_id,
        col(EvidenceRow.seq) == newest,
    )
    return tuple(
        candidate_of(evidence_of(row), binding, row.seq or 0)
        for row, binding in session.exec(query.order_by(col(BindingRow.seq)))
    )


def candidate_of(evidence: EvidenceBody, binding: BindingRow, evidence_seq: int) -> Candidate:
    """Build a candidate from a strategy's evidence and binding."""
    assert binding.seq is not None  # a stored row has one
    return Candidate(
        evidence_seq=evidence_seq,
        returns_hash=evidence.returns_hash,
        sectors=evidence.sectors,
        dataset_fingerprint=evidence.dataset_fingerprint,
        strategy_id=evidence.strategy_id,
        name=binding.name,
        bound=binding.seq,
        metrics=evidence.metrics,
        data_first=evidence.data_first,
        data_last=evidence.data_last,
        error_code=evidence.error_code,
        error=evidence.error,
    )
