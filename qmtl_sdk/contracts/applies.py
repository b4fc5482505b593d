"""An apply: what is asked for, the plan that says what will happen, and how it went.

A plan is a list of named stages. `explain` says each to a person, and the workflow executes the same list: freeze → drain → switch → unfreeze, after the approvals.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime

RunId = Annotated[str, Field(min_length=1, max_length=120, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\-]*$")]
Outcome = Literal["completed", "rolled_back", "frozen"]
MODE_OF = {"dryrun": "paper", "live": "live"}
_RANK = {"validate": 0, "paper": 1, "live": 2}


def rank_of(mode: str | None) -> int:
    """How far a mode is on the way to live; 0 for one that is not on it."""
    return _RANK.get(mode or "", 0)


class ApplyRequest(Model):
    """`POST /worlds/{id}/apply`. The same `run_id` with the same body is the same apply.

    `to`: how far to bring the strategies that pass (the next stage of the policy, unless said). `strategies`: only these. `weights`: their shares, 0…1, instead of the
    decision's. `rollback_of`: back to how the world was before that apply. `etag`: refuse unless the plan's is this one.
    """

    run_id: RunId
    to: Literal["dryrun", "live"] | None = None
    strategies: tuple[str, ...] = Field((), max_length=1000)
    weights: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field({}, max_length=1000)
    rollback_of: str = Field("", max_length=120)
    reason: str = Field("", max_length=500)
    etag: str = Field("", max_length=128)


class StrategyAllocation(Model):
    """Where a strategy stands in a world."""

    active: bool = False
    mode: str = "validate"
    weight: float = 0.0

    @property
    def rank(self) -> int:
        return rank_of(self.mode) if self.active else -1

    def __str__(self) -> str:
        return f"{self.mode} at {self.weight:.4g}" if self.active else "off"


class Change(OfStrategy):
    """What becomes of one strategy."""

    before: StrategyAllocation
    after: StrategyAllocation

    @property
    def goes_up(self) -> bool:
        """Whether it comes to trade more than it did: a further stage, or more weight in one that trades."""
        return self.after.rank > self.before.rank or (
            self.after.rank == self.before.rank > 0 and self.after.weight > self.before.weight
        )


class LeftOut(OfStrategy):
    """A strategy that passes and is not taken along, and why."""

    why: str

    def __str__(self) -> str:
        return f"{self.label}: {self.why}"


class AwaitApprovals(Model):
    """Wait until enough people have agreed. Nobody agrees to their own request, and nobody counts twice."""

    kind: Literal["approval"] = "approval"
    required: int
    roles: tuple[str, ...]
    expires_s: float
    direct_signals: bool
    requested_by: str

    def explain(self) -> str:
        if not self.required:
            return "no approval is needed: nothing goes up"
        people = "one person" if self.required == 1 else f"{self.required} people"
        return f"wait for {people} ({' or '.join(self.roles)}, not {self.requested_by}) to approve, for {format_duration(self.expires_s)} at the longest"


class Freeze(Model):
    """Refuse every order from here on: the epoch goes up, then everyone is told and says that they have heard."""

    kind: Literal["freeze"] = "freeze"
    close_live_edge: bool
    ack_timeout_s: float

    def explain(self) -> str:
        edge = ", close the edge from backtest to live" if self.close_live_edge else ""
        return f"freeze: orders are refused from here on{edge}; wait for sessions and Gateways to say that they have heard, for {format_duration(self.ack_timeout_s)} at the longest"


class Drain(Model):
    """Wait until no accepted order is open. Too long: everything goes back."""

    kind: Literal["drain"] = "drain"
    timeout_s: float

    def explain(self) -> str:
        return f"drain: wait until no order is open, for {format_duration(self.timeout_s)} at the longest; then everything goes back"


class Switch(Model):
    """Change activations, edges, queue bindings and the pinned fingerprint, in one transaction. Refused: the earlier state is restored, and the world stays frozen."""

    kind: Literal["switch"] = "switch"
    changes: int
    open_live_edge: bool

    def explain(self) -> str:
        edge = ", open the edge from backtest to live" if self.open_live_edge else ""
        return f"switch {self.changes} {'strategy' if self.changes == 1 else 'strategies'}{edge}; if that fails the world stays frozen until an operator resumes it"


class Unfreeze(Model):
    """Let orders in again, under a new epoch."""

    kind: Literal["unfreeze"] = "unfreeze"
    ack_timeout_s: float

    def explain(self) -> str:
        return "unfreeze: orders are taken again, under a new epoch"


Stage = Annotated[AwaitApprovals | Freeze | Drain | Switch | Unfreeze, Field(discriminator="kind")]


class ApplyPlan(Model):
    """What an apply will do. `etag` is a hash of what it was made from: where that has changed meanwhile, the plan is not carried out."""

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
    stages: tuple[Stage, ...]

    @property
    def approval(self) -> AwaitApprovals:
        return next(stage for stage in self.stages if isinstance(stage, AwaitApprovals))

    @property
    def freeze(self) -> Freeze:
        return next(stage for stage in self.stages if isinstance(stage, Freeze))

    @property
    def leads_to_live(self) -> bool:
        """Whether something trades live by it that did not, or more than it did."""
        return (self.live_edge_after and not self.live_edge_before) or any(
            change.goes_up and change.after.mode == "live" for change in self.changes
        )

    @property
    def title(self) -> str:
        if self.rollback_of:
            return f"roll back {self.rollback_of} in {self.world_id}"
        return f"bring {len(self.changes)} {'strategy' if len(self.changes) == 1 else 'strategies'} of {self.world_id} to {self.target}"

    def diff(self) -> list[tuple[str, str, str]]:
        """What changes: the thing, before, after."""
        rows = [(change.label, str(change.before), str(change.after)) for change in self.changes]
        if self.live_edge_before != self.live_edge_after:
            words_of = {True: "open", False: "closed"}
            rows.append(
                ("edge backtest → live", words_of[self.live_edge_before], words_of[self.live_edge_after])
            )
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
    """What a person said. `via` direct: by a signal sent straight to Temporal, in a name that nobody checked; it counts only where the policy says so."""

    approval_id: str
    actor: str
    verdict: Literal["approve", "reject"]
    reason: str = ""
    via: Literal["gateway", "direct"]
    counts: bool
    at: UtcTime


class ApprovalBody(Model):
    """`POST …/approve` and `…/reject`. `etag`: of the plan that the person saw; another one is refused."""

    reason: str = Field("", max_length=500)
    etag: str = Field("", max_length=128)


class Step(Model):
    name: str
    started: UtcTime
    ended: UtcTime | None = None


class Acknowledgement(Model):
    """Who has heard of a freeze or unfreeze, and when; `at` None: not yet."""

    sequence: int
    phase: str
    kind: Literal["session", "gateway"]
    holder: str
    at: UtcTime | None = None
    late: bool = False


class ApplyStatus(Model):
    """An apply as the store has it. `state` is the step that it is at, or its outcome."""

    world_id: str
    run_id: str
    state: str
    outcome: Outcome | None = None
    reason: str = ""
    requested_by: str
    requested_at: UtcTime
    ended_at: UtcTime | None = None
    epoch_before: int = 0
    epoch_after: int = 0
    plan: ApplyPlan
    approvals: tuple[Approval, ...] = ()
    steps: tuple[Step, ...] = ()
    acks: tuple[Acknowledgement, ...] = ()
    workflow_url: str = ""

    @property
    def waits_for(self) -> str:
        """What it waits for and who must act, in words."""
        if self.outcome:
            return f"{self.outcome}{f': {self.reason}' if self.reason else ''}"
        if self.state == "approval":
            counted = len(approvers(self.approvals))
            stage = self.plan.approval
            return f"waits for {stage.required - counted} more approval(s) by {' or '.join(stage.roles)}, not by {stage.requested_by}"
        return f"at {self.state}"


class GateStatus(Model):
    """A world's gate: whether orders can pass at all, and under which epoch."""

    world_id: str
    epoch: int
    state: Literal["open", "frozen", "draining"]
    held_by: str = ""
    halted: str = Field(
        "", description="why an operator or the circuit breaker has halted it; empty where nobody has"
    )
    allow_live: bool
    live_edge: bool
    decision_fresh_until: UtcTime | None = None
    open_orders: int = 0
    orders: dict[str, int] = {}


def approvers(approvals: Iterable[Approval]) -> set[str]:
    """Name the people whose approvals count: each person once, however often they approved."""
    return {item.actor for item in approvals if item.counts and item.verdict == "approve"}


def plan_etag(
    activations: Sequence[tuple[str, str]], fingerprint: str, live_edge: bool, policy_version: int | None
) -> str:
    """A hash of what a plan is made from: each strategy's activation etag, the pinned fingerprint, the edge to live, the policy."""
    return hash_of(
        {
            "activations": dict(activations),
            "fingerprint": fingerprint,
            "live_edge": live_edge,
            "policy": policy_version,
        }
    )
