"""Applies: the request, approvals, acknowledgements, and the status. The plan is in `plans`."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from qmtl_sdk.contracts.flattening import Unflattened
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.texts import Identifier, PlainLine
from qmtl_sdk.contracts.worlds import UtcTime

CHANGE_PREFIX = "change-"
"""The start of the id of a rule change, by which it differs from every apply's."""


def _is_no_change(run_id: str) -> str:
    """Return an id that no rule change can have. Raises ValueError."""
    if run_id.startswith(CHANGE_PREFIX):
        raise ValueError(f"an id that begins with {CHANGE_PREFIX!r} is one of a rule change; choose another")
    return run_id


RunId = Annotated[
    str,
    Field(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]*$"),
    AfterValidator(_is_no_change),
]
"""The caller's name of an apply, unique in its world."""

ApprovalSubject = Literal["apply", "change", "rebalancing"]
"""What an approval is about: an apply, or a change of rules."""

ApplyOutcome = Literal["completed", "rolled_back", "frozen"]
"""How an apply ended; `frozen`: a switch or its restoration failed, and an operator must resume the world."""

ApplyStepName = Literal["requested", "approval", "freeze", "drain", "switch", "restore", "unfreeze"]
"""The steps of an apply; `restore` undoes a switch that failed."""

ApplyState = ApplyStepName | ApplyOutcome
"""The current step of an apply, or its outcome."""


class ApplyRequest(Model):
    """`POST /worlds/{id}/apply`. The same `run_id` with the same body is the same apply.

    `to`: the stage for the strategies that pass; by default the next stage of the policy. `strategies`: only
    these. `weights`: shares (0…1) instead of the decision's. `rollback_of`: restore the world as it was
    before that apply. `etag`: refuse unless the plan has this etag.
    """

    run_id: RunId
    to: Literal["dryrun", "live"] | None = None
    strategies: tuple[Identifier, ...] = Field((), max_length=1000)
    weights: dict[Identifier, Annotated[float, Field(ge=0, le=1)]] = Field({}, max_length=1000)
    rollback_of: PlainLine = Field("", max_length=120)
    reason: PlainLine = Field("", max_length=500)
    etag: PlainLine = Field("", max_length=128)


class Approval(Model):
    """A person's approval or rejection.

    `via` direct: it was signalled to Temporal directly, where nobody checked the name. `counts`: whether the
    policy counts it. `plan_hash`: of the plan that it is about (`ApplyPlan.content_hash`); a direct signal
    names none.
    """

    approval_id: str
    actor: str
    verdict: Literal["approve", "reject"]
    reason: str = ""
    via: Literal["gateway", "direct"]
    counts: bool
    plan_hash: str = ""
    at: UtcTime


class ApprovalBody(Model):
    """`POST …/approve` and `…/reject`. `etag`: of the plan that the person read; another plan is refused."""

    reason: PlainLine = Field("", max_length=500)
    etag: PlainLine = Field("", max_length=128)


class StepRecord(Model):
    """A step that an apply has begun."""

    name: ApplyStepName
    started: UtcTime
    ended: UtcTime | None = None


class Acknowledgement(Model):
    """A session's or Gateway's acknowledgement of a freeze or unfreeze; `at` None: not yet."""

    sequence: int
    phase: Literal["freeze", "unfreeze"]
    kind: Literal["session", "gateway"]
    holder: str
    at: UtcTime | None = None
    late: bool = False


class ApplyStatus(Model):
    """An apply as it is stored. `state` is its current step, or its outcome.

    `aborted_by`: who asked to abort it, which is carried out unless the switch has begun.
    """

    world_id: str
    run_id: str
    state: ApplyState
    outcome: ApplyOutcome | None = None
    reason: str = ""
    requested_by: str
    requested_at: UtcTime
    aborted_by: str = ""
    abort_reason: str = ""
    ended_at: UtcTime | None = None
    epoch_before: int = 0
    epoch_after: int = 0
    plan: ApplyPlan
    approvals: tuple[Approval, ...] = ()
    steps: tuple[StepRecord, ...] = ()
    acks: tuple[Acknowledgement, ...] = ()
    workflow_url: str = ""

    @property
    def waits_for(self) -> str:
        """What the apply waits for and who must act, as a sentence."""
        if self.outcome:
            return f"{self.outcome}{f': {self.reason}' if self.reason else ''}"
        if self.aborted_by and self.state in ("requested", "approval", "freeze", "drain"):
            return f"at {self.state}; aborted by {self.aborted_by}, it ends as soon as Temporal answers"
        if self.state == "approval":
            step = self.plan.approval
            missing = step.required - len(approvers(self.approvals))
            approvals = "approval" if missing == 1 else "approvals"
            roles = " or ".join(step.roles)
            return f"waits for {missing} more {approvals} by {roles}, not by {step.requested_by}"
        return f"at {self.state}"


class StrategyHalt(Model):
    """A halted strategy of a world: who halted it, since when and why."""

    strategy_id: str
    name: str
    reason: str
    since: UtcTime
    halted_by: str

    @property
    def label(self) -> str:
        """Its name; where it has none, its strategy_id."""
        return self.name or self.strategy_id

    @property
    def text(self) -> str:
        """The strategy, and who halted it and why."""
        return f"{self.label} ({self.halted_by}{': ' if self.reason else ''}{self.reason})"


class FenceStatus(Model):
    """A world's fence: whether orders can pass, and under which epoch.

    `held_by`: the apply that froze the world. `orders`: how many orders were accepted, withheld, or refused
    for each reason.
    """

    world_id: str
    epoch: int
    state: Literal["open", "frozen", "draining"]
    held_by: str = ""
    rebalanced_by: str = Field("", description="the rebalancing that has locked the world")
    scale: str = Field("", description="what rebalancings have made of the weights of its strategies")
    scale_factor: str = Field("1", description="the same as an exact fraction, 0 where they took its share")
    halted: str = Field("", description="why the world is halted; empty if it is not")
    allow_live: bool
    live_edge: bool
    decision_fresh_until: UtcTime | None = None
    strategy_halts: tuple[StrategyHalt, ...] = Field((), description="strategies that are halted")
    open_orders: int = 0
    flattening: int = Field(0, description="strategies whose positions are being closed")
    unflattened: tuple[Unflattened, ...] = Field((), description="what flattens have left, and why")
    orders: dict[str, int] = {}


def approvers(approvals: Iterable[Approval]) -> set[str]:
    """Return the people whose approvals count, each once however often they approved."""
    return {item.actor for item in approvals if item.counts and item.verdict == "approve"}


def rejection(approvals: Iterable[Approval]) -> Approval | None:
    """Return the first rejection that counts."""
    return next((item for item in approvals if item.counts and item.verdict == "reject"), None)
