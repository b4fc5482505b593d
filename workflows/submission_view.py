"""What people see of a submission in the Temporal UI."""

from activities.messages.submission import Conclusion, SubmissionInput
from qmtl_sdk.contracts.submission import Heartbeat, SubmissionAck
from workflows.markdown import metrics_line, paragraphs


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
    status: str, submission: SubmissionInput, ack: SubmissionAck | None, metrics: dict[str, float | None]
) -> str:
    """Build the details in the Temporal UI: the present status first, then what is known of the run."""
    nodes = f"{submission.nodes} nodes"
    if ack is not None:
        nodes += f", {ack.nodes_new} new, {ack.nodes_reused} reused"
    lines = [f"**{status}**", f"{submission.label} in world {submission.world_id}: {nodes}"]
    if ack is not None:
        context = ack.context
        domain = f"computed in {context.execution_domain.value} as of {context.as_of or 'no pinned time'}"
        reason = f" (safe mode: {context.downgrade_reason})" if context.downgrade_reason else ""
        lines.append(domain + reason)
    if metrics:
        lines.append(f"metrics: {metrics_line(metrics)}")
    return paragraphs(lines)
