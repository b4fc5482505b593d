"""Activities of ProposalWorkflow. The store decides each firing once."""

from temporalio import activity

from activities.messages.proposals import FailedProposal, ProposeShares
from activities.messages.stubs import ProposalActivityStubs
from activities.rebalancing.firings import SqlFirings
from qmtl_sdk.contracts.rebalance_schedules import Firing


class ProposalActivities(ProposalActivityStubs):
    """What a firing of a schedule does."""

    def __init__(self, firings: SqlFirings) -> None:
        self._firings = firings

    @activity.defn(no_thread_cancel_exception=True)
    def propose_shares(self, command: ProposeShares) -> Firing:
        """Propose shares, and request a run where they differ by more than the tolerance."""
        return self._firings.fire(command.name, command.at)

    @activity.defn(no_thread_cancel_exception=True)
    def record_failed_proposal(self, command: FailedProposal) -> Firing:
        """Store that a firing could not decide, and why."""
        return self._firings.fail(command.name, command.at, command.reason)
