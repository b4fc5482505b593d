"""Evidence records: read the newest evidence of each strategy for a judgment."""

from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, ScalarSelect, bindparam, case
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, func, select
from sqlmodel.sql.expression import Select

from activities.decisions.candidate import Candidate
from activities.messages.submission import EvidenceKind
from activities.storage.tables import BindingRow, EvidenceRow, SessionRow
from activities.storage.transactions import utc_text
from activities.submissions.runs import evidence_of

_KINDS: tuple[EvidenceKind, ...] = ("measured", "rejected", "self_reported", "failed")


def newest_evidence(
    session: Session, world_id: str, now: datetime, strategies: Collection[str] | None = None
) -> tuple[Candidate, ...]:
    """Read the newest evidence of every strategy of a world that has any, in the order of their bindings.

    `now` is the world's time: a bar that a session reported counts once it has closed. `strategies` limits
    the answer to these.
    """
    values: dict[str, Any] = {"world_id": world_id, "closed_by": utc_text(now.astimezone(UTC))}
    if strategies is not None:
        if not strategies:
            return ()
        values["strategies"] = list(strategies)
    return tuple(
        candidate_of(row, binding, datetime.fromisoformat(bar) if bar else None)
        for row, binding, bar in session.exec(_query(strategies is not None), params=values)
    )


@cache
def _query(limited: bool) -> "Select[EvidenceRow, BindingRow, str | None]":
    """Build the statement once: building it takes longer than reading a few rows, also under a world's fence.

    `limited`: whether it is limited to some strategies.
    """
    # One index look-up for each kind of each strategy's evidence: older evidence is never read. Materialized,
    # or SQLite would look each up as often as `_candidate` mentions it.
    wanted = select(BindingRow.seq, *(func.coalesce(_newest(kind), 0).label(kind) for kind in _KINDS)).where(
        BindingRow.world_id == bindparam("world_id")
    )
    if limited:
        wanted = wanted.where(col(BindingRow.strategy_id).in_(bindparam("strategies", expanding=True)))
    newest = wanted.cte("newest").prefix_with("MATERIALIZED")
    # A session may report any time, so bars that have not closed yet are left out.
    newest_bar = (
        select(func.max(SessionRow.newest_bar))
        .where(
            SessionRow.world_id == BindingRow.world_id,
            SessionRow.strategy_id == BindingRow.strategy_id,
            SessionRow.newest_bar <= bindparam("closed_by"),
        )
        .correlate(BindingRow)
        .scalar_subquery()
    )
    return (
        select(EvidenceRow, BindingRow, newest_bar)
        .where(
            BindingRow.seq == newest.c.seq,
            col(EvidenceRow.seq) == _candidate(*(newest.c[kind] for kind in _KINDS)),
        )
        .order_by(col(BindingRow.seq))
    )


def _candidate(
    measured: ColumnElement[int],
    rejected: ColumnElement[int],
    self_reported: ColumnElement[int],
    failed: ColumnElement[int],
) -> ColumnElement[int]:
    """Choose among the numbers of the newest evidence of each kind; 0 where there is none.

    What the service refused hides what is older. What an author says of itself hides nothing that the service
    measured. A run that failed hides nothing at all: what its runner says is nothing that was measured.
    """
    best = case((measured > 0, measured), else_=self_reported)
    known = case((rejected > best, rejected), else_=best)
    return case((known > 0, known), else_=failed)


def _newest(kind: EvidenceKind) -> ScalarSelect[int]:
    """Select the number of a binding's newest evidence of a kind; of measured evidence the latest `as_of`.

    Otherwise whoever runs a strategy over an earlier past would put it out.
    """
    other = aliased(EvidenceRow)
    of_strategy = select(other.seq).where(
        other.world_id == BindingRow.world_id,
        other.strategy_id == BindingRow.strategy_id,
        other.kind == kind,
    )
    return (
        of_strategy.order_by(col(other.as_of).desc(), col(other.seq).desc())
        .limit(1)
        .correlate(BindingRow)
        .scalar_subquery()
    )


def candidate_of(row: EvidenceRow, binding: BindingRow, newest_bar: datetime | None = None) -> Candidate:
    """Build a candidate from a strategy's evidence, its binding, and the newest bar of its sessions."""
    assert binding.seq is not None  # a stored row has one
    assert row.seq is not None
    evidence = evidence_of(row)
    return Candidate(
        evidence_seq=row.seq,
        first_seq=row.first_seq or row.seq,
        content_hash=row.content_hash,
        newest_bar=newest_bar,
        returns_hash=evidence.returns_hash,
        sectors=evidence.sectors,
        dataset_fingerprint=evidence.dataset_fingerprint,
        self_reported=evidence.self_reported,
        interval_s=evidence.interval_s,
        strategy_id=evidence.strategy_id,
        name=binding.name,
        bound=binding.seq,
        metrics=evidence.metrics,
        data_first=evidence.data_first,
        data_last=evidence.data_last,
        error_code=evidence.error_code,
        error=evidence.error,
    )
