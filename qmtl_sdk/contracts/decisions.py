"""Decisions about the strategies of a world, and the activations that follow from them."""

from typing import Any, Literal

from pydantic import Field, model_validator

from qmtl_sdk.contracts.domains import DEFAULT_TTL_S, Domain, Mode, domain_of
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime

JudgmentStep = Literal[
    "evidence", "data_currency", "gates", "bands", "score", "constraints", "topk", "hysteresis"
]
"""The steps of a judgment, in order."""

ViolationKind = Literal[
    "failed",
    "insufficient",
    "stale",
    "short_history",
    "rejected",
    "correlated",
    "exposed",
    "leveraged",
    "concentrated",
    "outranked",
    "waiting",
    "held",
]
"""The stable kinds of violations."""


class Violation(Model):
    """Why a strategy is not selected: the step of the judgment, a stable kind, the rule, the figures."""

    step: JudgmentStep
    kind: ViolationKind
    rule: str
    detail: str


class StrategyDecision(OfStrategy):
    """The decision about one strategy.

    `weight`: its share of the world (0…1). `contribution`: weight · annual return. `stays`: why this decision
    alone does not take it beyond backtest, where the policy asks for no approval.
    """

    active: bool
    weight: float = Field(0.0, ge=0, le=1)
    side: Literal["long", "short", "both"] = "both"
    rank: int | None = None
    score: float | None = None
    contribution: float | None = None
    dataset_fingerprint: str = Field("", description="of the data that it was judged on")
    stays: str = ""
    violations: tuple[Violation, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether it is active and passes today. One that fails today and is active is only held."""
        return self.active and not self.violations

    @property
    def explanation(self) -> str:
        """Say in one line why the strategy is active or not."""
        if self.active and not self.violations:
            return f"passed every gate with a score of {self.score:.4g}"
        return "; ".join(f"{violation.rule}: {violation.detail}" for violation in self.violations[:4])


class DecisionEnvelope(Model):
    """One judgment of a world.

    `as_of` is the world's time, `decided_at` the wall clock's. `ttl` is in seconds. `etag` is a hash of the
    content alone. `backtest_campaign`: seconds in backtest before this judgment alone takes a strategy
    further.
    """

    world_id: str
    policy_version: int
    effective_mode: str = Field(description="the furthest mode of a strategy in the world")
    judged_mode: Mode = Field("validate", description="the mode that this judgment alone gives")
    reason: str
    as_of: UtcTime
    decided_at: UtcTime
    ttl: int = DEFAULT_TTL_S
    backtest_campaign: int = 0
    etag: str
    strategies: tuple[StrategyDecision, ...] = ()

    def of(self, strategy_id: str) -> StrategyDecision | None:
        """Return the decision about one strategy, or None."""
        return next((item for item in self.strategies if item.strategy_id == strategy_id), None)


WHOLE_WORLD = "*"
"""The `strategy_id` of an activation of the world itself: its epoch, and whether its fence is open."""


class ActivationEnvelope(Model):
    """Whether a strategy is active in a world.

    `freeze` overrides `drain`; both make a strategy inactive in effect. `execution_domain` is that of the
    mode. `dataset_fingerprint` is pinned: of the data that the strategy was judged on when it entered its
    stage. In an event, `epoch` is that of the change, and `freeze` and `drain` are those of the whole world's
    activation; read from the Gateway, all three are those of the fence now.
    """

    world_id: str
    strategy_id: str
    side: Literal["long", "short", "both"] = "both"
    active: bool
    weight: float = Field(ge=0, le=1)
    freeze: bool = False
    drain: bool = False
    effective_mode: str | None
    execution_domain: Domain | None = None
    dataset_fingerprint: str = ""
    etag: str
    run_id: str
    ts: UtcTime
    stage_since: UtcTime | None = Field(None, description="since when it has been active in this mode")
    epoch: int = 1
    halted: bool = False
    phase: Literal["freeze", "unfreeze", "halt", "resume"] | None = None
    requires_ack: bool = False
    sequence: int = Field(0, description="counts the world's changes of activation")
    state_hash: str = Field("", description="hash of the world's whole activation after this change")

    @model_validator(mode="before")
    @classmethod
    def _domain_of_mode(cls, data: Any) -> Any:
        """Set the domain of the mode. (Any: pydantic's own types.)"""
        return {**data, "execution_domain": domain_of(data.get("effective_mode"))}

    @property
    def active_in_effect(self) -> bool:
        """Whether the strategy is active and neither frozen, draining nor halted."""
        return self.active and not self.freeze and not self.drain and not self.halted


class Explanation(Model):
    """The state of a strategy in a world, step by step, as text."""

    world_id: str
    strategy_id: str
    name: str
    decision: StrategyDecision
    lines: tuple[str, ...]
