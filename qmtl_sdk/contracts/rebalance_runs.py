"""Runs of rebalancings: what is requested, what each strategy's position changes by, and what came of it."""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import Field, model_validator

from qmtl_sdk.contracts.allocations import MAX_WORLDS
from qmtl_sdk.contracts.amounts import ZERO, Figure
from qmtl_sdk.contracts.applies import Approval, RunId, approvers
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime

ALL_WORLDS = "*"
"""Stands for several worlds where one would be named."""

MAX_SHOWN_TRADES = 1000
"""Trades of a run that its status lists."""

RebalanceOutcome = Literal["completed", "partial", "rolled_back", "aborted"]
"""How a run ended. `rolled_back`: before anything was changed."""

RebalanceState = Literal[
    "requested", "approval", "reductions", "increases", "completed", "partial", "rolled_back", "aborted"
]
"""The step of a run, or its outcome. From `reductions` on its worlds are locked and the shares are new."""

TradeState = Literal["planned", "ordered", "filled", "unfilled", "refused", "skipped"]
"""What became of a trade. `skipped`: its strategy has set another target since, which counts instead."""


class RebalanceApply(Model):
    """`POST /rebalancing/apply`: carry out what a request plans.

    `etag`: of the plan that the caller has seen; another plan is refused. `time_limit_s`: seconds from the
    lock of the worlds after which open orders are cancelled.
    """

    request: MultiWorldRebalanceRequest
    etag: PlainLine = Field("", max_length=128)
    reason: PlainLine = Field("", max_length=500)
    time_limit_s: float = Field(600.0, ge=1, le=86_400)

    @model_validator(mode="after")
    def _is_named(self) -> "RebalanceApply":
        if self.request.run_id is None:
            raise ValueError("request.run_id is missing: a run has an id, by which a retry is recognised")
        return self

    @property
    def run_id(self) -> str:
        """The id of the run."""
        assert self.request.run_id is not None
        return self.request.run_id


class RebalanceExecute(RebalanceApply):
    """`POST /rebalancing/execute`: show the trades of a request, and with `submit` carry them out."""

    submit: bool = False


class RebalanceTrade(Model):
    """By how much a run changes a strategy's position of a symbol at an account (positive: more).

    `quantity` is ordered; `crossed` is what it gets of the world's other strategies at the mark, without an
    order. `filled` is signed as well.
    """

    world_id: str
    strategy_id: str
    account: str
    symbol: str
    quantity: Figure = ZERO
    crossed: Figure = ZERO
    mark: Figure
    reduces: bool
    order_id: str = ""
    state: TradeState = "planned"
    filled: Figure = ZERO
    reason: str = ""

    @property
    def missing(self) -> Decimal:
        """What is not filled of the quantity."""
        return self.quantity - self.filled


class RebalanceReport(Model):
    """What a run has done. Notionals are at the marks of the plan.

    `tracking_error` is the share of the planned turnover that was not filled, 0 to 1.
    """

    orders: int
    filled: int
    crossed: int
    turnover: Figure
    missing_notional: Figure
    tracking_error: float


class RebalanceStatus(Model):
    """A run as it is stored. `state` is its step, or its outcome."""

    run_id: RunId
    worlds: Annotated[tuple[str, ...], Field(max_length=MAX_WORLDS)]
    state: RebalanceState
    outcome: RebalanceOutcome | None = None
    reason: str = ""
    title: str
    requested_by: str
    requested_at: UtcTime
    aborted_by: str = ""
    abort_reason: str = Field("", max_length=MAX_REASON)
    approvals_required: int
    approvals: tuple[Approval, ...] = ()
    deadline: UtcTime | None = None
    ended_at: UtcTime | None = None
    plan: RebalancePlan | None = None
    trades: tuple[RebalanceTrade, ...] = Field((), max_length=MAX_SHOWN_TRADES)
    report: RebalanceReport | None = None
    workflow_url: str = ""

    @property
    def waits_for(self) -> str:
        """What the run waits for and who must act, as a sentence."""
        if self.outcome:
            return f"{self.outcome}{f': {self.reason}' if self.reason else ''}"
        if self.aborted_by:
            return f"at {self.state}; aborted by {self.aborted_by}, it ends once its orders have"
        if self.state in ("requested", "approval") and self.approvals_required:
            missing = self.approvals_required - len(approvers(self.approvals))
            more = "approval" if missing == 1 else "approvals"
            return f"waits for {missing} more {more}, not by {self.requested_by}"
        return f"at {self.state}"


class RebalanceExecution(Model):
    """The trades that a request leads to; with `submit` also the run that carries them out."""

    trades: tuple[RebalanceTrade, ...]
    run: RebalanceStatus | None = None
