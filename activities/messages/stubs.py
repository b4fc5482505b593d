"""Signatures of all activities: workflows call these, the classes beside the stores implement them.

A workflow that imported the implementations would load the database drivers into Temporal's sandbox.
"""

from abc import ABC, abstractmethod

from temporalio import activity

from activities.messages.apply import (
    AckResult,
    ApplyBrief,
    ApplyInput,
    ApprovalList,
    ApprovalWait,
    AwaitAcks,
    AwaitApproval,
    ConcludeApply,
    DirectApproval,
    DrainCommand,
    FenceChange,
    StepDone,
)
from activities.messages.evaluation import (
    JudgeCommand,
    Judgment,
    RenewalDone,
    RenewalInput,
    RequestEvaluation,
)
from activities.messages.promotion import (
    ApplyEndResult,
    ApplyRequestResult,
    CheckConditions,
    PromotionApply,
    PublishPromotion,
)
from activities.messages.proposals import FailedProposal, ProposeShares
from activities.messages.rebalancing import (
    AbortRebalancing,
    AwaitRebalanceApproval,
    ConcludeRebalancing,
    OrderTrades,
    RebalanceApprovals,
    RebalanceBegun,
    RebalanceEnd,
    RebalancingBrief,
    RebalancingInput,
    TradesOrdered,
)
from activities.messages.submission import (
    AdmitRun,
    ConcludeSubmission,
    Conclusion,
    MeasureCommand,
    RejectCommand,
)
from activities.messages.upkeep import RetentionResult, RowsResult, UpkeepInput, UpkeepRows, UpkeepTopic
from qmtl_sdk.contracts.promotions import PromotionProgress
from qmtl_sdk.contracts.rebalance_schedules import Firing
from qmtl_sdk.contracts.submission import SubmissionAck


class SubmissionActivityStubs(ABC):
    """Activities of SubmissionWorkflow."""

    @activity.defn
    @abstractmethod
    def admit_run(self, command: AdmitRun) -> SubmissionAck:
        """Begin a run: bind its strategy to the world, add what is new to the graph, record the answer."""

    @activity.defn
    @abstractmethod
    def measure(self, command: MeasureCommand) -> dict[str, float | None]:
        """Compute and store the metrics of the uploaded returns."""

    @activity.defn
    @abstractmethod
    def reject(self, command: RejectCommand) -> None:
        """Store why a run has no metrics."""

    @activity.defn
    @abstractmethod
    def conclude(self, command: ConcludeSubmission) -> Conclusion:
        """Store how a run ended."""


class DecisionActivityStubs(ABC):
    """Activities of EvaluationWorkflow and RenewalWorkflow."""

    @activity.defn
    @abstractmethod
    def judge(self, command: JudgeCommand) -> Judgment:
        """Judge a world and store the decision."""

    @activity.defn
    @abstractmethod
    def worlds_to_renew(self, command: RenewalInput) -> RenewalDone:
        """List the worlds whose decision is about to become stale."""


class EvaluationActivityStubs(ABC):
    """Activities that request an evaluation."""

    @activity.defn
    @abstractmethod
    async def request_evaluation(self, command: RequestEvaluation) -> None:
        """Signal a world's EvaluationWorkflow, starting it if it does not run."""


class ApplyActivityStubs(ABC):
    """Activities of ApplyWorkflow."""

    @activity.defn
    @abstractmethod
    def apply_plan(self, command: ApplyInput) -> ApplyBrief:
        """Read the plan of an apply."""

    @activity.defn
    @abstractmethod
    def await_approval(self, command: AwaitApproval) -> ApprovalWait:
        """Record that an apply waits for approvals."""

    @activity.defn
    @abstractmethod
    def read_approvals(self, command: ApplyInput) -> ApprovalList:
        """Read all approvals of an apply."""

    @activity.defn
    @abstractmethod
    def record_direct_approval(self, command: DirectApproval) -> StepDone:
        """Store an approval that was signalled straight to Temporal."""

    @activity.defn
    @abstractmethod
    def freeze_world(self, command: ApplyInput) -> FenceChange:
        """Refuse orders, under a new epoch."""

    @activity.defn
    @abstractmethod
    async def drain_world(self, command: DrainCommand) -> AckResult:
        """Wait until no order is open and the freeze is acknowledged."""

    @activity.defn
    @abstractmethod
    def switch_world(self, command: ApplyInput) -> StepDone:
        """Change activations, queues, edge and fingerprint."""

    @activity.defn
    @abstractmethod
    def restore_world(self, command: ApplyInput) -> StepDone:
        """Restore what the freeze found."""

    @activity.defn
    @abstractmethod
    def unfreeze_world(self, command: ApplyInput) -> FenceChange:
        """Accept orders again, under a new epoch."""

    @activity.defn
    @abstractmethod
    async def await_acks(self, command: AwaitAcks) -> AckResult:
        """Wait until a change of the fence is acknowledged."""

    @activity.defn
    @abstractmethod
    def conclude_apply(self, command: ConcludeApply) -> StepDone:
        """Record how an apply ended."""


class RebalancingActivityStubs(ABC):
    """Activities of RebalancingWorkflow."""

    @activity.defn
    @abstractmethod
    def rebalancing_plan(self, command: RebalancingInput) -> RebalancingBrief:
        """Read the plan of a run."""

    @activity.defn
    @abstractmethod
    def await_rebalance_approval(self, command: AwaitRebalanceApproval) -> RebalanceApprovals:
        """Record that a run waits for approvals, and read those that were given."""

    @activity.defn
    @abstractmethod
    def begin_rebalancing(self, command: RebalancingInput) -> RebalanceBegun:
        """Lock the worlds of a run and change their shares."""

    @activity.defn
    @abstractmethod
    async def order_trades(self, command: OrderTrades) -> TradesOrdered:
        """Order the trades of a step, and wait until they have ended."""

    @activity.defn
    @abstractmethod
    def abort_rebalancing(self, command: AbortRebalancing) -> StepDone:
        """Store that the workflow of a run was cancelled."""

    @activity.defn
    @abstractmethod
    def conclude_rebalancing(self, command: ConcludeRebalancing) -> RebalanceEnd:
        """Record how a run ended, and unlock its worlds."""


class ProposalActivityStubs(ABC):
    """Activities of ProposalWorkflow."""

    @activity.defn
    @abstractmethod
    def propose_shares(self, command: ProposeShares) -> Firing:
        """Propose shares, and request a run where they differ by more than the tolerance."""

    @activity.defn
    @abstractmethod
    def record_failed_proposal(self, command: FailedProposal) -> Firing:
        """Store that a firing could not decide, and why."""


class PromotionActivityStubs(ABC):
    """Activities of PromotionWorkflow."""

    @activity.defn
    @abstractmethod
    def check_conditions(self, command: CheckConditions) -> PromotionProgress:
        """Check which conditions of the next stage are met."""

    @activity.defn
    @abstractmethod
    def request_apply(self, command: PromotionApply) -> ApplyRequestResult:
        """Request the apply that takes a strategy to its next stage."""

    @activity.defn
    @abstractmethod
    async def apply_ended(self, command: PromotionApply) -> ApplyEndResult:
        """Wait until a promotion's apply has ended, whoever runs it."""

    @activity.defn
    @abstractmethod
    def publish_promotion(self, command: PublishPromotion) -> None:
        """Record and publish a promotion's new state."""


class QueueActivityStubs(ABC):
    """Activities of UpkeepWorkflow."""

    @activity.defn
    @abstractmethod
    def queues_due(self, command: UpkeepInput) -> list[str]:
        """List the queues that retention applies to."""

    @activity.defn
    @abstractmethod
    def apply_retention(self, command: UpkeepTopic) -> RetentionResult:
        """Archive and drop what is older than a queue's retention."""


class RetentionActivityStubs(ABC):
    """Activities of UpkeepWorkflow for the tables of the database."""

    @activity.defn
    @abstractmethod
    def retained_kinds(self, command: UpkeepInput) -> list[str]:
        """List the kinds of rows that retention applies to."""

    @activity.defn
    @abstractmethod
    def archive_rows(self, command: UpkeepRows) -> RowsResult:
        """Archive and remove the rows of a kind that are older than they are kept."""
