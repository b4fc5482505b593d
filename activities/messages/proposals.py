"""Messages of ProposalWorkflow."""

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.worlds import UtcTime


class ProposalInput(StoreMessage):
    """Which schedule of rebalancings fires."""

    name: str


class ProposeShares(ProposalInput):
    """Propose shares for a schedule that fires at a time."""

    at: UtcTime


class FailedProposal(ProposeShares):
    """Store that a firing could not decide."""

    reason: str
