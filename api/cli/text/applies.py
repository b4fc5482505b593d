"""Plans and applies as text."""

from datetime import UTC, datetime
from typing import Any

from api.cli.output import table
from qmtl_sdk.contracts.applies import Acknowledgement, ApplyStatus, Approval, StepRecord
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.plans import ApplyPlan

VERDICTS = {"approve": "approved", "reject": "rejected"}
"""What a person did, by the verdict that the store holds."""


def plan_text(plan: ApplyPlan) -> list[Any]:
    """Describe a plan: what changes, which strategies are left out, and the steps. (Any: rich tables.)"""
    lines: list[Any] = [plan.title + (f": {plan.reason}" if plan.reason else "")]
    lines.append(table(["what", "before", "after"], [list(row) for row in plan.diff()]))
    lines += [f"left out: {item}" for item in plan.left_out]
    return [*lines, *(f"{number}. {step.explain()}" for number, step in enumerate(plan.steps, 1))]


def apply_text(found: ApplyStatus) -> list[str]:
    """Describe an apply: its state, its approvals, its steps, and who acknowledged the freeze."""
    lines = [f"{found.run_id}: {found.waits_for}"]
    lines += [_approval_text(item) for item in found.approvals]
    lines += [_step_text(step) for step in found.steps]
    if found.acks:
        lines.append(_acknowledgements_text(found.acks))
    waits = found.outcome is None and found.state in ("requested", "approval")
    if waits and found.plan.approval.required:
        lines.append(approve_command(found.world_id, found.run_id))
    if found.workflow_url:
        lines.append(f"  {found.workflow_url}")
    return lines


def approve_command(world: str, run_id: str) -> str:
    """Return the command with which another person approves an apply."""
    return f"  qmtl world approve {world} {run_id}   (another person; to try it on this machine: --as ana)"


def _approval_text(item: Approval) -> str:
    reason = f": {item.reason}" if item.reason else ""
    note = "" if item.counts else " (signalled directly to Temporal; does not count)"
    return f"  {item.actor} {VERDICTS[item.verdict]}{reason}{note}"


def _step_text(step: StepRecord) -> str:
    seconds = ((step.ended or datetime.now(UTC)) - step.started).total_seconds()
    took = format_duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return f"  {step.name:<10} {step.started:%H:%M:%S}  {took}{'' if step.ended else ' so far'}"


def _acknowledgements_text(acks: tuple[Acknowledgement, ...]) -> str:
    in_time = sum(item.at is not None and not item.late for item in acks)
    missing = [
        f"{item.kind} {item.holder[:16]} ({item.phase})" for item in acks if item.at is None or item.late
    ]
    late = f"; not in time: {', '.join(missing)}" if missing else ""
    return f"  acknowledged by {in_time} of {len(acks)}{late}"
