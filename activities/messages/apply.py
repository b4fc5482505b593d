"""Inputs and results of ApplyWorkflow and its activities."""

from typing import Literal

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.applies import ApplyOutcome, ApplyStepName, Approval
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.plans import PlanStep
from qmtl_sdk.contracts.worlds import UtcTime

ApprovalVerdict = Literal["approve", "reject"]

# The ids of approvals that the Gateway stored begin with this.
STORED_APPROVAL = "approval:"


class ApplyInput(StoreMessage):
    """Which apply to run. The plan stays in the store; histories hold only references."""

    world_id: str
    run_id: str


class ApplyBrief(Model):
    """The part of a plan that the workflow needs: its steps, and the text that people see.

    `done` names the steps that an earlier run of the workflow has done.
    """

    title: str
    reason: str
    requested_by: str
    steps: tuple[PlanStep, ...]
    diff: tuple[tuple[str, str, str], ...]
    left_out: tuple[str, ...] = ()
    done: tuple[ApplyStepName, ...] = ()


class ApprovalSignal(Model):
    """Signal: approve or reject an apply.

    The Gateway sends only the `approval_id` of what it has stored. A signal sent straight to Temporal gives
    `actor` and `reason`, and is marked as direct.
    """

    run_id: str = ""
    approval_id: str = ""
    actor: str = ""
    reason: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the Gateway has stored this approval."""
        return self.approval_id.startswith(STORED_APPROVAL)


class DirectApproval(ApplyInput):
    """Store an approval or rejection that was sent straight to Temporal."""

    approval_id: str
    actor: str
    verdict: ApprovalVerdict
    reason: str


class ApprovalList(Model):
    """All approvals and rejections of an apply, oldest first."""

    approvals: tuple[Approval, ...]


class StepDone(Model):
    """Result of a step that returns nothing else."""


class AwaitApproval(ApplyInput):
    """Record that an apply waits for approvals until a time."""

    until: UtcTime


class ApprovalWait(StepDone):
    """Result of the step that waits for approvals: its limit, also for a run that replaces a lost one."""

    until: UtcTime


class FenceChange(StepDone):
    """Result of a freeze or an unfreeze: the epoch and the sequence that it was published under, and when."""

    epoch: int
    sequence: int
    at: UtcTime


class DrainCommand(ApplyInput):
    """Drain a frozen world. Limits are in seconds since the freeze."""

    frozen: FenceChange
    timeout_s: float
    ack_timeout_s: float


class AwaitAcks(ApplyInput):
    """Wait until every session and Gateway has acknowledged a fence change; `timeout_s` is in seconds."""

    change: FenceChange
    phase: Literal["freeze", "unfreeze"]
    timeout_s: float


class AckResult(Model):
    """Result of waiting for acknowledgements: the holders that did not acknowledge in time."""

    missing: tuple[str, ...] = ()


class ConcludeApply(ApplyInput):
    """Store how an apply ended."""

    outcome: ApplyOutcome
    reason: str


class AbortRequest(Model):
    """Update: abort an apply that has not switched yet."""

    run_id: str
    actor: str
    reason: str = ""


class Aborted(Model):
    """Answer to an abort: the step that the apply had reached."""

    run_id: str
    step: str


class ApplyEnd(Model):
    """Result of ApplyWorkflow. `epoch` is the world's epoch after it, 0 if this run never froze the world."""

    run_id: str
    outcome: ApplyOutcome
    reason: str = ""
    epoch: int = 0


class ApplyView(Model):
    """Answer to the query `plan`: which step the apply is at, and what it waits for."""

    run_id: str
    title: str
    step: str
    waits_for: str
    approvals: tuple[str, ...] = ()
