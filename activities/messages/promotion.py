"""Inputs and results of PromotionWorkflow and its activities."""

from typing import Literal

from activities.messages.base import HistoryMessage, StoreMessage
from qmtl_sdk.contracts.model import OfStrategy

PromotionTarget = Literal["dryrun", "live"]


class PromotionInput(OfStrategy, StoreMessage):
    """Promote one strategy to dryrun or live. `run_id` and `applies` come from an earlier run.

    `requested_issuers` are the issuers of the request's token (`TokenInfo`).
    """

    world_id: str
    to: PromotionTarget
    requested_by: str
    requested_issuers: tuple[str, ...] = ()
    reason: str = ""
    run_id: str = ""
    applies: int = 0


class CheckConditions(StoreMessage):
    """Check which conditions of a strategy's next stage are met."""

    world_id: str
    strategy_id: str
    to: PromotionTarget


class PromotionApply(StoreMessage):
    """The apply that takes a strategy to the mode `target`."""

    world_id: str
    strategy_id: str
    run_id: str
    target: str
    requested_by: str
    requested_issuers: tuple[str, ...] = ()
    reason: str


class ApplyRequestResult(HistoryMessage):
    """Whether an apply was requested. `refused` is the reason why not, empty if it was.

    `title` says what the apply does, `approvals` how many people have to approve it.
    """

    refused: str = ""
    title: str = ""
    approvals: int = 0


class ApplyEndResult(HistoryMessage):
    """How an apply ended. `failure` is the reason why it did not complete, empty if it did."""

    failure: str = ""


class PublishPromotion(StoreMessage):
    """Record and publish a promotion's new state."""

    world_id: str
    strategy_id: str
    run_id: str
    state: str
    actor: str
    reason: str


class EndPromotion(HistoryMessage):
    """Update: end a promotion before it has reached its target."""

    actor: str
    reason: str = ""


class PromotionEnd(HistoryMessage):
    """Result of PromotionWorkflow."""

    outcome: str
    reason: str = ""
