"""Messages of RebalancingWorkflow."""

from typing import Literal

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.applies import Approval
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.rebalance_runs import RebalanceOutcome, RebalanceReport
from qmtl_sdk.contracts.worlds import UtcTime


class RebalancingInput(StoreMessage):
    """Which run to carry out. Its plan stays in the store; histories hold only references."""

    run_id: str


class RebalancingBrief(Model):
    """The part of a run that its workflow needs, and the text that people see.

    `rows`: world, symbol, position before and after, what is ordered, and why something is not. `begun_at`:
    when an earlier run of the workflow has locked the worlds.
    """

    title: str
    reason: str
    requested_by: str
    worlds: tuple[str, ...]
    rows: tuple[tuple[str, str, str, str, str, str], ...]
    approvals_required: int
    roles: tuple[str, ...]
    approve_within_s: float
    time_limit_s: float
    begun_at: UtcTime | None = None


class AwaitRebalanceApproval(RebalancingInput):
    """Record that a run waits for approvals until a time."""

    until: UtcTime


class RebalanceApprovals(Model):
    """What people have said about a run, and until when it waits for them."""

    approvals: tuple[Approval, ...]
    until: UtcTime


class RebalanceBegun(Model):
    """When the worlds of a run were locked."""

    at: UtcTime


class OrderTrades(RebalancingInput):
    """Order what is planned in a step, and wait until it has ended: until a time, then it is cancelled."""

    step: Literal["reductions", "increases"]
    until: UtcTime


class TradesOrdered(Model):
    """Result of a step: the orders that had not ended when it did."""

    still_open: int = 0


class AbortRebalancing(RebalancingInput):
    """Store that a run was aborted, where its workflow was cancelled."""

    actor: str
    reason: str


class ConcludeRebalancing(RebalancingInput):
    """Store how a run ended."""

    outcome: RebalanceOutcome
    reason: str = ""


class RebalanceEnd(Model):
    """Result of RebalancingWorkflow."""

    run_id: str
    outcome: RebalanceOutcome
    reason: str = ""
    report: RebalanceReport | None = None


class RebalanceView(Model):
    """Answer to the query `plan`: which step the run is at, and what it waits for."""

    run_id: str
    title: str
    step: str
    waits_for: str
    approvals: tuple[str, ...] = ()
