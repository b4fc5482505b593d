"""The status of an apply, as people and the API read it."""

from datetime import datetime
from itertools import zip_longest

from sqlmodel import Session, col, select

from activities.fence.acknowledgements import acknowledgements
from activities.messages.apply import FenceChange
from activities.storage.tables import ApplyRow, ApplyStepRow, ApprovalRow, PrincipalRow
from activities.storage.transactions import RecordedChange, Transaction
from qmtl_sdk.contracts.applies import Acknowledgement, ApplyStatus, Approval, ApprovalSubject, StepRecord
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan


def apply_row(session: Session, world_id: str, run_id: str) -> ApplyRow:
    """Read an apply's row. Raises QmtlError (E_APPLY_UNKNOWN)."""
    row = session.get(ApplyRow, (world_id, run_id))
    if row is None:
        raise apply_unknown(world_id, run_id)
    return row


def apply_unknown(world_id: str, run_id: str) -> QmtlError:
    """Build the error for an apply that does not exist."""
    return QmtlError(
        "E_APPLY_UNKNOWN",
        f"there is no apply {run_id[:80]!r} in {world_id[:64]}",
        "qmtl world applies W lists them",
    )


def status_of(session: Session, row: ApplyRow) -> ApplyStatus:
    """Read everything about an apply: plan, steps, approvals and acknowledgements."""
    steps = session.exec(
        select(ApplyStepRow)
        .where(ApplyStepRow.world_id == row.world_id, ApplyStepRow.run_id == row.run_id)
        .order_by(col(ApplyStepRow.started_at))
    ).all()
    acks: list[Acknowledgement] = []
    for step in steps:
        if step.step in ("freeze", "unfreeze"):
            change = FenceChange.model_validate_json(step.result)
            acks += acknowledgements(session, row.world_id, change, step.step)
    return ApplyStatus.model_validate(
        {
            "world_id": row.world_id,
            "run_id": row.run_id,
            "state": row.outcome or row.state,
            "outcome": row.outcome or None,
            "reason": row.reason,
            "requested_by": row.requested_by,
            "requested_at": row.requested_at,
            "ended_at": row.ended_at,
            "aborted_by": row.aborted_by,
            "abort_reason": row.abort_reason,
            "epoch_before": row.epoch_before,
            "epoch_after": row.epoch_after,
            "plan": ApplyPlan.model_validate_json(row.plan),
            "approvals": approvals_of(session, row.world_id, row.run_id, "apply"),
            "steps": [
                StepRecord(
                    name=step.step,
                    started=datetime.fromisoformat(step.started_at),
                    ended=datetime.fromisoformat(after.started_at) if after else None,
                )
                for step, after in zip_longest(steps, steps[1:])
                if step.step != "end"
            ],
            "acks": acks,
        }
    )


def approvals_of(
    session: Session, world_id: str, subject: str, about: ApprovalSubject
) -> tuple[Approval, ...]:
    """List the approvals and rejections of an apply or a rule change, oldest first.

    Those of disabled people do not count.
    """
    rows = session.exec(
        select(ApprovalRow, PrincipalRow.disabled_at)
        .join(PrincipalRow, col(PrincipalRow.name) == ApprovalRow.actor, isouter=True)
        .where(ApprovalRow.world_id == world_id, ApprovalRow.subject == subject, ApprovalRow.about == about)
        .order_by(col(ApprovalRow.at))
    )
    return tuple(
        approval_of(row).model_copy(update={"counts": row.counts and disabled_at is None})
        for row, disabled_at in rows
    )


def is_disabled(session: Session, name: str) -> bool:
    """Return whether a person is a disabled principal."""
    found = session.get(PrincipalRow, name)
    return found is not None and found.disabled_at is not None


def stands(session: Session, row: ApplyRow) -> bool:
    """Return whether what an apply switched was not restored by its own run."""
    steps = select(ApplyStepRow.step).where(
        ApplyStepRow.world_id == row.world_id,
        ApplyStepRow.run_id == row.run_id,
        col(ApplyStepRow.step).in_(("switch", "restore")),
    )
    return list(session.exec(steps)) == ["switch"]


def approval_of(row: ApprovalRow) -> Approval:
    """Convert an approval's row."""
    return Approval.model_validate(
        {
            "approval_id": row.approval_id,
            "actor": row.actor,
            "verdict": row.verdict,
            "reason": row.reason,
            "via": row.via,
            "counts": row.counts,
            "plan_hash": row.plan_hash,
            "at": datetime.fromisoformat(row.at),
        }
    )


def running_apply(session: Session, world_id: str) -> ApplyRow | None:
    """Find the apply that is running in a world. There is at most one."""
    return session.exec(
        select(ApplyRow).where(ApplyRow.world_id == world_id, col(ApplyRow.ended_at).is_(None))
    ).first()


def record_progress(
    tx: Transaction,
    row: ApplyRow,
    action: str,
    state: str,
    *,
    before: object = None,
    after: object,
    **data: str,
) -> None:
    """Audit and publish a step of an apply. `data` is added to the event."""
    published = {"world_id": row.world_id, "run_id": row.run_id, "state": state, **data}
    tx.record(
        RecordedChange(
            action,
            row.world_id,
            row.run_id,
            before=before,
            after=after,
            correlation_id=row.run_id,
            event="apply.state",
            data=published,
        )
    )
