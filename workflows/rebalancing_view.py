"""What people see of a rebalancing: pure functions from its state to text."""

from collections.abc import Sequence

from activities.messages.rebalancing import RebalancingBrief
from qmtl_sdk.contracts.applies import Approval
from workflows.apply_view import approval_text
from workflows.markdown import paragraphs, plural, table, with_reason

_STEPS = (
    ("approval", "as many people as the strictest world asks for approve"),
    ("begin", "the worlds are locked, the plan is checked once more, the shares become the new ones"),
    ("reductions", "orders that bring positions nearer to zero, until they have ended"),
    ("increases", "all other orders, until they have ended or the time limit cancels them"),
    ("end", "what is missing is named, and the worlds are unlocked"),
)


def missing_approvals(run_id: str, plan: RebalancingBrief, missing: int) -> str:
    """Say how many approvals are missing, whose, and how to give one."""
    roles = " or ".join(plan.roles)
    command = f"`qmtl world rebalance-approve {run_id}`"
    return f"waits for {plural(missing, 'more approval')}: {command}, by {roles} (not {plan.requested_by})"


def rebalancing_details(
    plan: RebalancingBrief, now: str, approvals: Sequence[Approval], notes: Sequence[str]
) -> str:
    """Build the details in the Temporal UI: what the run waits for, approvals, trades, steps."""
    given = "; ".join(approval_text(item) for item in approvals) or "none yet"
    header = ("world", "symbol", "from", "to", "notional", "why not")
    return paragraphs(
        [
            f"**{now}**",
            f"approvals: {given}",
            with_reason(f"{plan.title}, requested by {plan.requested_by}", plan.reason),
            *(f"- {note}" for note in notes),
            table(header, plan.rows),
            table(("step", "what happens"), _STEPS),
        ]
    )
