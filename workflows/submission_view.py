"""What people and runners see of a submission: the acknowledgement, and the text in the Temporal UI."""

from activities.messages.submission import Conclusion, DiffResult, RunContextBody, SubmissionInput
from qmtl_sdk.contracts.identity import compute_key
from qmtl_sdk.contracts.submission import Heartbeat, Lease, QueueTarget, SubmissionAck
from workflows.markdown import metrics_line, paragraphs


def acknowledgement(
    run: RunContextBody, diff: DiffResult, workflow_id: str, lease: Lease | None
) -> SubmissionAck:
    """Build the answer to a submission: queue map, context, and the lease if the runner holds it."""
    context = run.context
    scope = (context.world_id, context.execution_domain.value, context.as_of or "", context.partition)
    reused = set(diff.reused)
    return SubmissionAck(
        world_id=run.world_id,
        strategy_id=run.strategy_id,
        workflow_id=workflow_id,
        run_id=run.run_id,
        queue_map={
            node_id: QueueTarget(
                topic=topic, compute_key=compute_key(node_id, *scope), reused=node_id in reused
            )
            for node_id, topic in diff.topics.items()
        },
        nodes_new=len(diff.new),
        nodes_reused=len(diff.reused),
        sentinel_id=diff.sentinel_id,
        context=context,
        bindings=run.bindings,
        execution=run.execution,
        lease=lease,
    )


def waiting_text(submission: SubmissionInput, reached: Heartbeat) -> str:
    """Say that a runner is needed, how to start one, and how far the last one came."""
    progress = f" (computed so far: node {reached.node}, bar {reached.bar})" if reached.node else ""
    return (
        f"waiting for a runner: submit {submission.label} again with"
        f" `qmtl submit FILE --world {submission.world_id}`{progress}"
    )


def conclusion_text(conclusion: Conclusion) -> str:
    """Say what was decided, and why."""
    if conclusion.status == "shadow":
        verdict = "computed in shadow"
    elif conclusion.active:
        verdict = f"active, rank {conclusion.rank}, weight {conclusion.weight:.3g}"
    else:
        verdict = "not active"
    return f"{conclusion.status}: {verdict}. {conclusion.reason}"


def submission_details(
    status: str,
    submission: SubmissionInput,
    run: RunContextBody | None,
    diff: DiffResult | None,
    metrics: dict[str, float | None],
) -> str:
    """Build the details in the Temporal UI: the present status first, then what is known of the run."""
    nodes = f"{submission.nodes} nodes"
    if diff is not None:
        nodes += f", {len(diff.new)} new, {len(diff.reused)} reused"
    lines = [f"**{status}**", f"{submission.label} in world {submission.world_id}: {nodes}"]
    if run is not None:
        context = run.context
        domain = f"computed in {context.execution_domain.value} as of {context.as_of or 'no pinned time'}"
        reason = f" (safe mode: {context.downgrade_reason})" if context.downgrade_reason else ""
        lines.append(domain + reason)
    if metrics:
        lines.append(f"metrics: {metrics_line(metrics)}")
    return paragraphs(lines)
