"""Plans and applies as text."""

from datetime import UTC, datetime
from typing import Any

from api.cli.output import table
from qmtl_sdk.contracts.applies import Acknowledgement, ApplyStatus, Approval, StepRecord
from qmtl_sdk.contracts.changes import ChangeStatus
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.plans import ApplyPlan, Change

# Metrics of the backtest that a plan shows; `-o json` has all of them.
_SHOWN_METRICS = ("sharpe", "max_drawdown", "annual_return", "trades", "sample_days")

VERDICTS = {"approve": "approved", "reject": "rejected"}
"""What a person did, by the verdict that the store holds."""


def plan_text(plan: ApplyPlan) -> list[Any]:
    """Describe a plan: what changes and why, who is left out, and the steps. (Any: rich tables.)"""
    lines: list[Any] = [plan.title + (f": {plan.reason}" if plan.reason else "")]
    lines.append(table(["what", "before", "after"], [list(row) for row in plan.diff()]))
    for change in plan.changes:
        lines += _grounds_text(change)
    lines += [f"left out: {item}" for item in plan.left_out]
    lines += [f"{number}. {step.explain()}" for number, step in enumerate(plan.steps, 1)]
    return [*lines, f"plan {plan.content_hash}"]


def _grounds_text(change: Change) -> list[str]:
    """Describe what a change rests on: evidence, metrics, what fails today, what is not met."""
    grounds = change.grounds
    if not grounds.evidence_seq:
        return [f"{change.label}: no evidence"]
    until = max(filter(None, (grounds.data_last, grounds.newest_bar)), default=None)
    data = f", data up to {until:%Y-%m-%d %H:%M} UTC" if until else ""
    known = {name: value for name in _SHOWN_METRICS if (value := grounds.metrics.get(name)) is not None}
    figures = [f"{name} {value:.4g}" for name, value in known.items()]
    lines = [f"{change.label}: evidence {grounds.evidence_seq}{data}: {', '.join(figures) or 'no metrics'}"]
    fails = "fails today and is only held" if grounds.active else "fails"
    lines += [f"  {fails}: {item.rule}: {item.detail}" for item in grounds.violations]
    return lines + [f"  not met: {item.detail}" for item in grounds.conditions if not item.met]


def change_text(change: ChangeStatus) -> list[str]:
    """Describe a change of a world's rules, and how it is approved."""
    lines = [f"{change.change_id}: {change.title}, requested by {change.requested_by}: {change.state}"]
    lines += [f"  loosens {item}" for item in change.loosens]
    lines += [approval_line(item) for item in change.approvals]
    if change.state == "waiting":
        lines.append(approve_command(change.world_id, change.change_id))
    return lines


def apply_text(found: ApplyStatus) -> list[str]:
    """Describe an apply: its state, its approvals, its steps, and who acknowledged the freeze."""
    lines = [f"{found.run_id}: {found.waits_for}"]
    lines += [approval_line(item) for item in found.approvals]
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


def approval_line(item: Approval) -> str:
    """Describe an approval or rejection in one line."""
    reason = f": {item.reason}" if item.reason else ""
    note = "" if item.counts else " (signalled directly to Temporal; does not count)"
    return f"  {item.actor} {VERDICTS[item.verdict]}{reason}{note}"


def _step_text(step: StepRecord) -> str:
    seconds = ((step.ended or datetime.now(UTC)) - step.started).total_seconds()
    took = format_duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
    return f"  {step.name:<10} {step.started:%Y-%m-%d %H:%M:%S} UTC  {took}{'' if step.ended else ' so far'}"


def _acknowledgements_text(acks: tuple[Acknowledgement, ...]) -> str:
    in_time = sum(item.at is not None and not item.late for item in acks)
    missing = [
        f"{item.kind} {item.holder[:16]} ({item.phase})" for item in acks if item.at is None or item.late
    ]
    late = f"; not in time: {', '.join(missing)}" if missing else ""
    return f"  acknowledged by {in_time} of {len(acks)}{late}"
