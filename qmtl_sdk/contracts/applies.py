"""An apply: the request, the plan of what will happen, and its progress.

A plan is a list of named steps. `explain` describes each to a person, and the workflow executes the same
list: approval → freeze → drain → switch → unfreeze.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import Mode, rank_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime

RunId = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]*$")]
"""The caller's name of an apply, unique in its world."""

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
    strategies: tuple[str, ...] = Field((), max_length=1000)
    weights: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field({}, max_length=1000)
    rollback_of: str = Field("", max_length=120)
    reason: str = Field("", max_length=500)
    etag: str = Field("", max_length=128)


class StrategyAllocation(Model):
    """A strategy's activation in a world: whether it is active, in which mode, with which weight (0…1)."""

    active: bool = False
    mode: Mode = "validate"
    weight: float = 0.0

    @property
    def rank(self) -> int:
        """How close to live the strategy is: 0 to 2, or -1 if it is not active."""
        return rank_of(self.mode) if self.active else -1

    def __str__(self) -> str:
        return f"{self.mode} at {self.weight:.4g}" if self.active else "off"


class Change(OfStrategy):
    """The allocation of one strategy before and after an apply."""

    before: StrategyAllocation
    after: StrategyAllocation

    @property
    def goes_up(self) -> bool:
        """Whether the strategy trades more afterwards: a further stage, or more weight in one that trades."""
        return self.after.rank > self.before.rank or (
            self.after.rank == self.before.rank > 0 and self.after.weight > self.before.weight
        )


class LeftOut(OfStrategy):
    """A strategy that passes but is not part of the plan, and the reason."""

    why: str

    def __str__(self) -> str:
        return f"{self.label}: {self.why}"


class AwaitApprovals(Model):
    """Wait until enough people have approved.

    Nobody approves their own request, and nobody counts twice.
    """

    kind: Literal["approval"] = "approval"
    required: int
    roles: tuple[str, ...]
    expires_s: float
    direct_signals: bool
    requested_by: str

    def explain(self) -> str:
        """Describe the step to a person."""
        if not self.required:
            return "no approval is required: no strategy trades more than before"
        people = "one person" if self.required == 1 else f"{self.required} people"
        roles = " or ".join(self.roles)
        limit = format_duration(self.expires_s)
        return f"wait up to {limit} for {people} ({roles}, not {self.requested_by}) to approve"


class Freeze(Model):
    """Refuse all orders: raise the epoch, publish it, and wait until sessions and Gateways acknowledge."""

    kind: Literal["freeze"] = "freeze"
    close_live_edge: bool
    ack_timeout_s: float

    def explain(self) -> str:
        """Describe the step to a person."""
        edge = ", close the edge from backtest to live" if self.close_live_edge else ""
        limit = format_duration(self.ack_timeout_s)
        return f"freeze: refuse all orders{edge}; wait up to {limit} for sessions and Gateways to acknowledge"


class Drain(Model):
    """Wait until no accepted order is open. On timeout the apply is rolled back."""

    kind: Literal["drain"] = "drain"
    timeout_s: float

    def explain(self) -> str:
        """Describe the step to a person."""
        limit = format_duration(self.timeout_s)
        return f"drain: wait up to {limit} until no order is open; on timeout the apply is rolled back"


class Switch(Model):
    """Change activations, edges, queue bindings and the pinned fingerprint in one transaction.

    If that is refused, the earlier state is restored and the world stays frozen.
    """

    kind: Literal["switch"] = "switch"
    changes: int
    open_live_edge: bool

    def explain(self) -> str:
        """Describe the step to a person."""
        edge = ", open the edge from backtest to live" if self.open_live_edge else ""
        what = _strategies(self.changes)
        return f"switch {what}{edge}; if that fails, the world stays frozen until an operator resumes it"


class Unfreeze(Model):
    """Accept orders again, under a new epoch."""

    kind: Literal["unfreeze"] = "unfreeze"
    ack_timeout_s: float

    def explain(self) -> str:
        """Describe the step to a person."""
        return "unfreeze: accept orders again, under a new epoch"


PlanStep = Annotated[AwaitApprovals | Freeze | Drain | Switch | Unfreeze, Field(discriminator="kind")]


class ApplyPlan(Model):
    """The plan of an apply.

    `etag` is a hash of the state that the plan was made from; if that state has changed, the plan is not
    executed. `fingerprint_before`, `fingerprint_after`: of the dataset.
    """

    world_id: str
    run_id: str
    target: str
    requested_by: str
    reason: str = ""
    rollback_of: str = ""
    changes: tuple[Change, ...]
    left_out: tuple[LeftOut, ...] = ()
    live_edge_before: bool
    live_edge_after: bool
    fingerprint_before: str
    fingerprint_after: str
    policy_version: int
    etag: str
    stages: tuple[PlanStep, ...]

    @property
    def approval(self) -> AwaitApprovals:
        """The step that waits for approvals."""
        return next(step for step in self.stages if isinstance(step, AwaitApprovals))

    @property
    def freeze(self) -> Freeze:
        """The step that freezes the world."""
        return next(step for step in self.stages if isinstance(step, Freeze))

    @property
    def leads_to_live(self) -> bool:
        """Whether a strategy trades live afterwards that did not before, or with more weight."""
        return (self.live_edge_after and not self.live_edge_before) or any(
            change.goes_up and change.after.mode == "live" for change in self.changes
        )

    @property
    def title(self) -> str:
        """One line that names the apply."""
        if self.rollback_of:
            return f"roll back {self.rollback_of} in {self.world_id}"
        return f"bring {_strategies(len(self.changes))} of {self.world_id} to {self.target}"

    def diff(self) -> list[tuple[str, str, str]]:
        """Return what changes: name, before, after."""
        rows = [(change.label, str(change.before), str(change.after)) for change in self.changes]
        if self.live_edge_before != self.live_edge_after:
            state = {True: "open", False: "closed"}
            rows.append(("edge backtest → live", state[self.live_edge_before], state[self.live_edge_after]))
        if self.fingerprint_before != self.fingerprint_after:
            rows.append(
                (
                    "dataset fingerprint",
                    self.fingerprint_before[:24] or "none",
                    self.fingerprint_after[:24] or "none",
                )
            )
        return rows


class Approval(Model):
    """A person's approval or rejection.

    `via` direct: it was signalled to Temporal directly, where nobody checked the name. `counts`: whether the
    policy counts it.
    """

    approval_id: str
    actor: str
    verdict: Literal["approve", "reject"]
    reason: str = ""
    via: Literal["gateway", "direct"]
    counts: bool
    at: UtcTime


class ApprovalBody(Model):
    """`POST …/approve` and `…/reject`. `etag`: of the plan that the person read; another plan is refused."""

    reason: str = Field("", max_length=500)
    etag: str = Field("", max_length=128)


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
    """An apply as it is stored. `state` is its current step, or its outcome."""

    world_id: str
    run_id: str
    state: ApplyState
    outcome: ApplyOutcome | None = None
    reason: str = ""
    requested_by: str
    requested_at: UtcTime
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
        if self.state == "approval":
            step = self.plan.approval
            missing = step.required - len(approvers(self.approvals))
            approvals = "approval" if missing == 1 else "approvals"
            roles = " or ".join(step.roles)
            return f"waits for {missing} more {approvals} by {roles}, not by {step.requested_by}"
        return f"at {self.state}"


class GateStatus(Model):
    """A world's fence: whether orders can pass, and under which epoch.

    `held_by`: the apply that froze the world. `orders`: how many orders there are, by state.
    """

    world_id: str
    epoch: int
    state: Literal["open", "frozen", "draining"]
    held_by: str = ""
    halted: str = Field(
        "", description="why an operator or the circuit breaker halted the world; empty if it is not halted"
    )
    allow_live: bool
    live_edge: bool
    decision_fresh_until: UtcTime | None = None
    open_orders: int = 0
    orders: dict[str, int] = {}


def approvers(approvals: Iterable[Approval]) -> set[str]:
    """Return the people whose approvals count, each once however often they approved."""
    return {item.actor for item in approvals if item.counts and item.verdict == "approve"}


def plan_etag(
    activations: Sequence[tuple[str, str]], fingerprint: str, live_edge: bool, policy_version: int | None
) -> str:
    """Return the hash of what a plan is made from.

    That is each strategy's activation etag, the pinned fingerprint, the edge to live, and the policy version.
    """
    return hash_of(
        {
            "activations": dict(activations),
            "fingerprint": fingerprint,
            "live_edge": live_edge,
            "policy": policy_version,
        }
    )


def _strategies(count: int) -> str:
    return "1 strategy" if count == 1 else f"{count} strategies"
