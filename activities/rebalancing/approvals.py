"""Approvals and rejections of rebalancings."""

import json

from sqlalchemy import update
from sqlmodel import Session, col, select

from activities.applies.approval_rows import ApprovalSubject, approval_row
from activities.applies.own_requests import require_another_person
from activities.applies.status import approval_of, approvals_of
from activities.messages.apply import ApprovalVerdict
from activities.rebalancing.rows import REBALANCING, record, summary_row
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import ApprovalRow, RebalancingRow
from activities.storage.transactions import utc_now
from qmtl_sdk.contracts.applies import Approval, ApprovalBody
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_runs import ALL_WORLDS


class SqlRebalanceApprovals:
    """Stores what people say about rebalancings, and hands it to their workflows."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self, run_id: str, actor: str, verdict: ApprovalVerdict, body: ApprovalBody, token_id: str = ""
    ) -> Approval:
        """Store the approval or rejection of an authenticated person. Idempotent for the same verdict.

        Raises QmtlError: E_REBALANCE_UNKNOWN, E_REBALANCE_ENDED, E_ETAG, E_APPROVAL_OWN.
        """
        with self._database.write(actor) as tx:
            tx.lock("allocation")
            row = summary_row(tx.session, run_id)
            newest = _newest_approval(tx.session, run_id, actor)
            if newest is not None and newest.verdict == verdict:
                return approval_of(newest)
            if row.ended_at is not None or row.locked_at:
                raise QmtlError(
                    "E_REBALANCE_ENDED",
                    f"{run_id} no longer waits for approval: it is {row.outcome or f'at {row.state}'}",
                    "qmtl world rebalance-status lists the runs",
                )
            if body.etag and body.etag != row.plan_etag:
                raise QmtlError(
                    "E_ETAG",
                    "that is the etag of another plan",
                    "read the run again, then repeat",
                    etag=row.plan_etag,
                )
            if verdict == "approve":
                issuers = json.loads(row.requested_issuers)
                require_another_person(tx, run_id, row.requested_by, issuers, actor, token_id)
            subject = ApprovalSubject(REBALANCING, ALL_WORLDS, run_id, row.plan_hash)
            approval = approval_row(subject, actor, verdict, body.reason)
            tx.session.add(approval)
            found = approval_of(approval)
            record(
                tx,
                row,
                f"rebalancing.{'approved' if verdict == 'approve' else 'rejected'}",
                found.json_dict(),
            )
            return found

    def unread(self) -> list[tuple[str, Approval]]:
        """List the approvals that the workflows of running runs have not read, each with its run."""
        query = select(ApprovalRow).join(RebalancingRow, col(RebalancingRow.run_id) == ApprovalRow.subject)
        mine = (ApprovalRow.world_id == ALL_WORLDS, ApprovalRow.about == REBALANCING)
        unread = (col(ApprovalRow.read_at).is_(None), col(RebalancingRow.ended_at).is_(None))
        with self._database.read() as session:
            rows = session.exec(query.where(*mine, *unread)).all()
            return readable(rows, lambda row: (row.subject, approval_of(row)))

    def read(self, run_id: str) -> tuple[Approval, ...]:
        """List the approvals of a run, and mark them as read by its workflow."""
        with self._database.write(REBALANCING, bookkeeping=True) as tx:
            mine = (
                col(ApprovalRow.world_id) == ALL_WORLDS,
                col(ApprovalRow.subject) == run_id,
                col(ApprovalRow.about) == REBALANCING,
                col(ApprovalRow.read_at).is_(None),
            )
            tx.connection.execute(update(ApprovalRow).where(*mine).values(read_at=utc_now()))
            return approvals_of(tx.session, ALL_WORLDS, run_id, REBALANCING)


def _newest_approval(session: Session, run_id: str, actor: str) -> ApprovalRow | None:
    query = select(ApprovalRow).where(
        ApprovalRow.world_id == ALL_WORLDS,
        ApprovalRow.subject == run_id,
        ApprovalRow.about == REBALANCING,
        ApprovalRow.actor == actor,
    )
    return session.exec(query.order_by(col(ApprovalRow.at).desc())).first()
