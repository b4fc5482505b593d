"""The plan of an apply: a list of named steps, and what changes for each strategy.

`explain` describes each step to a person, and the workflow executes the same list: approval → freeze → drain
→ switch → unfreeze.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import Violation
from qmtl_sdk.contracts.domains import Domain, Mode, domain_of, rank_of, stage_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.promotions import Condition
from qmtl_sdk.contracts.worlds import UtcTime


class StrategyAllocation(Model):
    """A strategy's activation in a world: whether it is active, in which mode, with which weight (0…1)."""

    active: bool = False
    mode: Mode = "validate"
    weight: float = 0.0

    @property
    def rank(self) -> int:
        """How close to live the strategy is: 0 to 2, or -1 if it is not active."""
        return rank_of(self.mode) if self.active else -1

    def goes_beyond(self, before: "StrategyAllocation") -> bool:
        """Whether a strategy trades more with this: a further stage, or more weight in one that trades."""
        return self.rank > before.rank or (self.rank == before.rank > 0 and self.weight > before.weight)

    def __str__(self) -> str:
        return f"{stage_of(self.mode)} at {self.weight:.4g}" if self.active else "not active"


class Grounds(Model):
    """What a plan rests on for one strategy: its newest evidence, and the newest decision about it.

    `evidence_seq` is the number of the evidence (0: none), and `content_hash` the hash of its content.
    `metrics` are those of the backtest. `newest_bar`: the newest close that a session of the strategy has
    reported. `active` and `violations` are those of the decision; one that is active and has violations fails
    today and is only held. `conditions` are those of the stage that the strategy would enter.
    """

    evidence_seq: int = 0
    content_hash: str = ""
    returns_hash: str = ""
    dataset_fingerprint: str = ""
    self_reported: str = ""
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    newest_bar: UtcTime | None = None
    metrics: dict[str, float | None] = {}
    active: bool = False
    violations: tuple[Violation, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def essence(self) -> dict[str, object]:
        """What must not change before the plan is carried out: not the figures that change with time."""
        return {
            "evidence": self.content_hash,
            "active": self.active,
            "violations": [[item.step, item.kind, item.rule] for item in self.violations],
            "conditions": {item.name: item.met for item in self.conditions},
        }


class Change(OfStrategy):
    """The allocation of one strategy before and after an apply, and what the plan rests on."""

    before: StrategyAllocation
    after: StrategyAllocation
    grounds: Grounds = Grounds()

    @property
    def goes_up(self) -> bool:
        """Whether the strategy trades more afterwards: a further stage, or more weight in one that trades."""
        return self.after.goes_beyond(self.before)

    @property
    def leaves(self) -> Domain | None:
        """The domain that trades, and in which the strategy trades no more afterwards."""
        before, after = (_trades_in(allocation) for allocation in (self.before, self.after))
        return before if before is not after else None


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
    `flatten`: strategies whose positions are closed, since they leave their domain by a rollback.
    """

    kind: Literal["switch"] = "switch"
    changes: int
    open_live_edge: bool
    flatten: int = 0

    def explain(self) -> str:
        """Describe the step to a person."""
        edge = ", open the edge from backtest to live" if self.open_live_edge else ""
        closed = f", close the positions of {_strategies(self.flatten)}" if self.flatten else ""
        what = f"{_strategies(self.changes)}{edge}{closed}"
        return f"switch {what}; if that fails, the world stays frozen until an operator resumes it"


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

    `etag` is a hash of what the plan was made from (`plan_etag`); if that has changed at the freeze, the plan
    is not executed. `world_etag` is the part of it that the switch checks again. `fingerprint_before`,
    `fingerprint_after`: of the dataset.
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
    world_etag: str
    steps: tuple[PlanStep, ...]

    @property
    def content_hash(self) -> str:
        """The hash of the whole plan as approvers see it."""
        return hash_of(self.json_dict())

    @property
    def approval(self) -> AwaitApprovals:
        """The step that waits for approvals."""
        return next(step for step in self.steps if isinstance(step, AwaitApprovals))

    @property
    def freeze(self) -> Freeze:
        """The step that freezes the world."""
        return next(step for step in self.steps if isinstance(step, Freeze))

    @property
    def switch(self) -> Switch:
        """The step that changes the world."""
        return next(step for step in self.steps if isinstance(step, Switch))

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


def _trades_in(allocation: StrategyAllocation) -> Domain | None:
    domain = domain_of(allocation.mode) if allocation.active else None
    return domain if domain in (Domain.DRYRUN, Domain.LIVE) else None


def plan_etag(world_etag: str, grounds: Mapping[str, Grounds]) -> str:
    """Return the hash of what a plan is made from.

    `world_etag` is the hash of the state of the world: each strategy's activation etag, the pinned
    fingerprint, the edge to live and how often it was closed, the policy version. `grounds` are those of each
    strategy that trades more afterwards: less is never in doubt.
    """
    return hash_of({"world": world_etag, "grounds": {name: item.essence for name, item in grounds.items()}})


def _strategies(count: int) -> str:
    return "1 strategy" if count == 1 else f"{count} strategies"
