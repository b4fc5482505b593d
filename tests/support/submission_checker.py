"""Check the stores after a run: every acknowledged submission is complete, and nothing is recorded twice."""

from sqlalchemy import func, text
from sqlmodel import select

from activities.storage.database import Database
from activities.storage.tables import (
    AuditRow,
    CommitLogRow,
    DecisionRow,
    EvaluationRequestRow,
    EvidenceRow,
    OutboxRow,
    OutcomeRow,
    QueueRow,
    RunContextRow,
)
from workflows.ids import submission_run_of


def submission_violations(database: Database) -> list[str]:
    """Everything that was promised and not kept, as the store itself says it: lost, doubled or unrecorded."""
    broken: list[str] = []
    with database.read() as session:
        runs = {row.run_id for row in session.exec(select(RunContextRow))}
        for row in session.exec(select(CommitLogRow)):
            if row.run_id is None and row.refused is None:
                broken.append(f"{row.idempotency_key} was logged and never admitted")
            if row.run_id is not None and row.run_id not in runs:
                broken.append(f"{row.idempotency_key} was admitted by a run that does not exist")
        outcomes = {row.run_id for row in session.exec(select(OutcomeRow))}
        evidence = {row.run_id for row in session.exec(select(EvidenceRow))}
        requests = {submission_run_of(row.request_id) for row in session.exec(select(EvaluationRequestRow))}
        broken += [f"run {run} has no outcome" for run in runs - outcomes]
        broken += [f"run {run} has no evidence" for run in runs - evidence]
        broken += [f"run {run} was not judged" for run in runs - requests]
        once = (
            "submission.received",
            "submission.admitted",
            "run.begun",
            "graph.diff",
            "evidence.saved",
            "submission.concluded",
        )
        twice = session.exec(
            select(AuditRow.action, AuditRow.subject, AuditRow.correlation_id)
            .where(AuditRow.action.in_(once))
            .group_by(AuditRow.action, AuditRow.subject, AuditRow.correlation_id)
            .having(func.count() > 1)
        )  # type: ignore[attr-defined]
        broken += [f"{action} of {subject[:20]} was recorded twice" for action, subject, _ in twice]
        decisions = session.exec(select(func.count()).select_from(DecisionRow)).one()
        recorded = session.exec(
            select(func.count()).select_from(AuditRow).where(AuditRow.action == "decision.made")
        ).one()
        if decisions != recorded:
            broken.append(f"{decisions} decisions, {recorded} in the audit trail")
        answered = {row.decision_seq for row in session.exec(select(EvaluationRequestRow))}
        unasked = {row.seq for row in session.exec(select(DecisionRow))} - answered
        broken += [f"decision {seq} answers nobody" for seq in unasked]
        doubled = session.exec(
            select(QueueRow.node_id, QueueRow.world_id, QueueRow.execution_domain)
            .group_by(QueueRow.node_id, QueueRow.world_id, QueueRow.execution_domain)
            .having(func.count() > 1)
        ).all()
        broken += [f"{node[:20]} has two queues" for node, _, _ in doubled]
        if (
            session.exec(select(func.count()).select_from(AuditRow)).one()
            != session.exec(select(func.count()).select_from(OutboxRow)).one()
        ):
            broken.append("audit and outbox have different lengths")
        orphans = (
            session.connection()
            .execute(
                text(
                    "SELECT count(*) FROM graph_edge e "
                    "WHERE NOT EXISTS (SELECT 1 FROM graph_node n WHERE n.node_id = e.child)"
                )
            )
            .scalar_one()
        )
        if orphans:
            broken.append(f"{orphans} edges lead to no node")
    return broken
