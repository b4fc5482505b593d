"""What people see of an apply: pure functions from its state to text."""

from dataclasses import dataclass

from activities.messages.apply import ApplyBrief, ApplyInput
from qmtl_sdk.contracts.applies import Approval
from qmtl_sdk.contracts.plans import AwaitApprovals
from workflows.markdown import paragraphs, plural, table, with_reason

# Names of sessions and Gateways in one note.
_SHOWN_HOLDERS = 10


@dataclass(frozen=True)
class ApplyMoment:
    """An apply at one moment: its step, what it waits for, approvals, notes about earlier steps."""

    step: str
    waits_for: str
    approvals: tuple[Approval, ...]
    notes: tuple[str, ...]


def missing_approvals(apply: ApplyInput, step: AwaitApprovals, approved_by: set[str]) -> str:
    """Say how many approvals are missing, whose, and how to give one."""
    missing = plural(step.required - len(approved_by), "more approval")
    roles = " or ".join(step.roles)
    command = f"`qmtl world approve {apply.world_id} {apply.run_id}`"
    return f"waits for {missing}: {command}, by {roles} (not {step.requested_by})"


def missing_acknowledgements(change: str, holders: tuple[str, ...]) -> str:
    """Name the sessions and Gateways that did not acknowledge a freeze or unfreeze."""
    return f"the {change} was not acknowledged in time by: {', '.join(holders[:_SHOWN_HOLDERS])}"


def approval_text(approval: Approval) -> str:
    """Describe one approval or rejection."""
    counted = "" if approval.counts else ", does not count"
    verb = "approved" if approval.verdict == "approve" else "rejected"
    return with_reason(f"{approval.actor} {verb} ({approval.via}{counted})", approval.reason)


def stays_frozen(apply: ApplyInput, reason: str) -> str:
    """Say that a switch was undone, and how to open the world."""
    resume = f"`qmtl world resume {apply.world_id}`"
    return f"{reason}; the state before it is restored, and the world stays frozen: {resume}"


def apply_details(plan: ApplyBrief, moment: ApplyMoment) -> str:
    """Build the details in the Temporal UI: what the apply waits for, approvals, changes, steps."""
    now = f"{moment.step}: {moment.waits_for}" if moment.waits_for else moment.step
    approvals = "; ".join(approval_text(item) for item in moment.approvals) or "none yet"
    steps = tuple((step.kind, step.explain()) for step in plan.steps)
    return paragraphs(
        [
            f"**{now}**",
            f"approvals: {approvals}",
            with_reason(f"{plan.title}, requested by {plan.requested_by}", plan.reason),
            table(("what", "before", "after"), plan.diff),
            *(f"- left out: {text}" for text in plan.left_out),
            *(f"- {note}" for note in moment.notes),
            table(("step", "what happens"), steps),
        ]
    )
