"""Approvals and rejections of applies."""

import json

from sqlalchemy import update
from sqlmodel import Session, col, select

from activities.applies.approval_rows import ApprovalSubject, approval_row
from activities.applies.own_requests import require_another_person
from activities.applies.status import apply_row, approval_of, approvals_of, is_disabled
from activities.messages.apply import ApprovalVerdict, DirectApproval
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import ApplyRow, ApprovalRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.applies import Approval, ApprovalBody, approvers, rejection
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan

# Characters of a direct signal's reason that are stored.
_REASON_LENGTH = 500


class SqlApprovals:
    """Stores what people say about applies, and hands it to their workflows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self,
        world_id: str,
        run_id: str,
        actor: str,
        verdict: ApprovalVerdict,
        body: ApprovalBody,
        token_id: str = "",
    ) -> Approval:
        """Store the approval or rejection of an authenticated person, given with the token `token_id`.

        Idempotent for the same verdict.

        Raises QmtlError: E_APPLY_UNKNOWN, E_APPLY_ENDED, E_ETAG, E_APPROVAL_OWN.
        """
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            row = apply_row(tx.session, world_id, run_id)
            query = select(ApprovalRow).where(
                ApprovalRow.world_id == world_id,
                ApprovalRow.subject == run_id,
                ApprovalRow.about == "apply",
                ApprovalRow.actor == actor,
                ApprovalRow.via == "gateway",
            )
            newest = tx.session.exec(query.order_by(col(ApprovalRow.at).desc())).first()
            if newest is not None and newest.verdict == verdict:
                return approval_of(newest)
            if row.ended_at is not None or row.state not in ("requested", "approval"):
                raise QmtlError(
                    "E_APPLY_ENDED",
                    f"{run_id} no longer waits for approval: it is {row.outcome or f'at {row.state}'}",
                    "qmtl world applies W lists the running ones",
                )
            plan = ApplyPlan.model_validate_json(row.plan)
            if body.etag and body.etag != plan.etag:
                raise QmtlError(
                    "E_ETAG",
                    "that is the etag of another plan",
                    "read the current plan, then repeat",
                    etag=plan.etag,
                )
            if verdict == "approve":
                issuers = json.loads(row.requested_issuers)
                require_another_person(tx, run_id, row.requested_by, issuers, actor, token_id)
            subject = ApprovalSubject("apply", world_id, run_id, plan.content_hash)
            return self._store(tx, approval_row(subject, actor, verdict, body.reason))

    def record_direct(self, signal: DirectApproval) -> Approval:
        """Store an approval that was signalled straight to Temporal, under the name that it claims.

        The plan says whether it counts. Idempotent by approval_id. Raises QmtlError (E_APPLY_UNKNOWN).
        """
        with self._database.write("temporal") as tx:
            tx.lock(f"world:{signal.world_id}")
            done = tx.session.get(ApprovalRow, signal.approval_id)
            if done is not None:
                return approval_of(done)
            row = apply_row(tx.session, signal.world_id, signal.run_id)
            approval_step = ApplyPlan.model_validate_json(row.plan).approval
            actor = _storable(signal.actor)
            own = signal.verdict == "approve" and actor == row.requested_by
            approval = ApprovalRow(
                approval_id=signal.approval_id,
                world_id=signal.world_id,
                about="apply",
                subject=signal.run_id,
                actor=actor,
                verdict=signal.verdict,
                reason=_storable(signal.reason)[:_REASON_LENGTH],
                via="direct",
                counts=approval_step.direct_signals and bool(actor) and not own,
                at=utc_now(),
            )
            return self._store(tx, approval)

    @staticmethod
    def _store(tx: Transaction, row: ApprovalRow) -> Approval:
        tx.session.add(row)
        approval = approval_of(row)
        data = {
            "world_id": row.world_id,
            "run_id": row.subject,
            "actor": row.actor,
            "verdict": row.verdict,
            "via": row.via,
            "counts": row.counts,
        }
        tx.record(
            RecordedChange(
                f"approval.{'given' if row.verdict == 'approve' else 'rejected'}",
                row.world_id,
                row.subject,
                after=approval.json_dict(),
                correlation_id=row.subject,
                data=data,
            )
        )
        return approval

    def unread(self) -> list[tuple[str, str, Approval]]:
        """List stored approvals that their workflow has not read yet: world, run, approval."""
        with self._database.read() as session:
            query = select(ApprovalRow, ApplyRow).where(
                ApprovalRow.via == "gateway",
                ApprovalRow.about == "apply",
                col(ApprovalRow.read_at).is_(None),
                ApplyRow.world_id == ApprovalRow.world_id,
                ApplyRow.run_id == ApprovalRow.subject,
                col(ApplyRow.ended_at).is_(None),
            )
            rows = [row for row, _ in session.exec(query)]
            return readable(rows, lambda row: (row.world_id, row.subject, approval_of(row)))

    def read(self, world_id: str, run_id: str) -> tuple[Approval, ...]:
        """List all approvals of an apply, and mark them as read by its workflow."""
        with self._database.write("apply", bookkeeping=True) as tx:
            fresh = (
                col(ApprovalRow.world_id) == world_id,
                col(ApprovalRow.subject) == run_id,
                col(ApprovalRow.about) == "apply",
                col(ApprovalRow.read_at).is_(None),
            )
            tx.session.connection().execute(update(ApprovalRow).where(*fresh).values(read_at=utc_now()))
            return approvals_of(tx.session, world_id, run_id, "apply")


def require_approved(session: Session, row: ApplyRow, plan: ApplyPlan) -> None:
    """Check the approvals once more: a rejection may have come, and people may have left, since the last one.

    Raises QmtlError: E_APPLY_REJECTED, E_APPROVAL_MISSING.
    """
    given = approvals_of(session, row.world_id, row.run_id, "apply")
    rejected = rejection(given)
    if rejected is not None:
        raise QmtlError("E_APPLY_REJECTED", f"rejected by {rejected.actor}", "request another apply")
    if is_disabled(session, row.requested_by):
        raise QmtlError(
            "E_APPROVAL_MISSING",
            f"{row.requested_by}, who requested it, is disabled",
            "somebody else requests it: qmtl world apply W",
        )
    counted = len(approvers(given))
    if counted < plan.approval.required:
        raise QmtlError(
            "E_APPROVAL_MISSING",
            f"{counted} of {plan.approval.required} approvals count: somebody who approved is disabled",
            "request another apply",
        )


def _storable(text: str) -> str:
    """Remove null characters, which PostgreSQL refuses. Nobody has checked the text of a direct signal."""
    return text.replace("\0", "")
