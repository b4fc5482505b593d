"""A world's policy: the evidence that it requires, how it ranks strategies, how many it takes, and who must
approve.

Policies are written in YAML (`policy_text`) and versioned. Every expression is parsed when the policy is
uploaded, so that a misspelt metric never reaches a judgment.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from qmtl_sdk.contracts.domains import MODE_OF, Mode
from qmtl_sdk.contracts.durations import Seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.expressions import MAX_LENGTH, is_condition, parse
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine


def _condition(text: str) -> str:
    if not is_condition(parse(text)):
        raise QmtlError(
            "E_EXPRESSION", f"“{text}” is a number, a gate needs a condition", "compare it: “sharpe >= 0.6”"
        )
    return text


def _number(text: str) -> str:
    if is_condition(parse(text)):
        raise QmtlError(
            "E_EXPRESSION",
            f"“{text}” is a condition, a score needs a number",
            "write it like “sharpe - 0.2*ulcer”",
        )
    return text


def _metric(name: str) -> str:
    METRICS.require(name)
    return name


MAX_GATES = 100
"""Gates of a policy, in all groups together: each is evaluated for each strategy."""

_Text = Annotated[str, Field(max_length=MAX_LENGTH)]
_Figure = Annotated[float, Field(ge=-1e15, le=1e15)]
_Places = Annotated[int, Field(ge=0, le=100_000)]

GateExpression = Annotated[_Text, AfterValidator(_condition)]
"""A condition on metrics, such as `sharpe >= 0.6`."""

ScoreExpression = Annotated[_Text, AfterValidator(_number)]
"""A number from metrics, such as `sharpe - 0.2*ulcer`."""

MetricName = Annotated[str, Field(max_length=64), AfterValidator(_metric)]
"""One of `METRICS`."""


class DataCurrency(Model):
    """Limits on the data of evidence, in seconds or as “3d”.

    `max_lag`: the largest age of the newest bar on the world's clock. `min_history`: the shortest span of
    data.
    """

    max_lag: Seconds | None = None
    min_history: Seconds | None = None


class Gates(Model):
    """Conditions joined by `and` or `or`; a group may contain groups."""

    all_of: "tuple[GateExpression | Gates, ...]" = Field((), alias="and", max_length=MAX_GATES)
    any_of: "tuple[GateExpression | Gates, ...]" = Field((), alias="or", max_length=MAX_GATES)

    @model_validator(mode="after")
    def _one_kind(self) -> "Gates":
        if self.all_of and self.any_of:
            raise ValueError("a group of gates has either `and` or `or`; nest a group to have both")
        if self.count > MAX_GATES:
            raise ValueError(f"there are {self.count} gates and groups; {MAX_GATES} are allowed")
        return self

    @property
    def count(self) -> int:
        """The number of gates and groups, those in groups included."""
        return sum(1 if isinstance(gate, str) else 1 + gate.count for gate in (*self.all_of, *self.any_of))


class BySide(Model):
    """The largest number of long and of short strategies.

    A strategy that is both counts by its larger side.
    """

    long: _Places | None = None
    short: _Places | None = None


class TopK(Model):
    """The largest number of active strategies, in total and by side."""

    total: int = Field(gt=0, le=100_000)
    by_side: BySide = BySide()


class Correlation(Model):
    """The largest absolute correlation of daily returns of two selected strategies."""

    max_pairwise: float = Field(ge=0, le=1)


class GrossBudget(Model):
    """The largest share of the world (weight · gross exposure) on each side."""

    long: float | None = Field(None, ge=0, le=1e6)
    short: float | None = Field(None, ge=0, le=1e6)


class Exposure(Model):
    """Limits on exposure.

    `max_leverage`: the largest sum of absolute positions of a strategy. `sector_cap`: the largest share (0…1)
    of the selected strategies in one sector.
    """

    gross_budget: GrossBudget = GrossBudget()
    max_leverage: float | None = Field(None, gt=0, le=1e6)
    sector_cap: float | None = Field(None, gt=0, le=1)


class Constraints(Model):
    """Limits across strategies."""

    correlation: Correlation | None = None
    exposure: Exposure = Exposure()


class Bands(Model):
    """An active strategy stays while `metric` ≥ `exit`; an inactive one enters at ≥ `enter`."""

    metric: MetricName
    enter: _Figure
    exit: _Figure

    @model_validator(mode="after")
    def _in_order(self) -> "Bands":
        if self.exit > self.enter:
            raise ValueError(
                f"exit ({self.exit:g}) is above enter ({self.enter:g}): "
                "a strategy that enters would leave at once"
            )
        return self


class Hysteresis(Model):
    """Delays of entry and exit.

    A strategy enters after `promote_after` passes in a row and leaves after `demote_after` failures in a row,
    and neither before it has been `min_dwell` (world time) in its present state.
    """

    promote_after: int = Field(1, ge=1, le=1_000_000)
    demote_after: int = Field(1, ge=1, le=1_000_000)
    min_dwell: Seconds | None = None
    bands: Bands | None = None


class Selection(Model):
    """How the strategies of a world are selected: gates, score, top-k, constraints, hysteresis."""

    gates: Gates = Gates()
    score: ScoreExpression = "sharpe"
    topk: TopK | None = None
    constraints: Constraints = Constraints()
    hysteresis: Hysteresis = Hysteresis()


class DomainPath(Model):
    """How far a passing strategy may go: validation, paper trading or live."""

    start: Literal["backtest"] = Field("backtest", alias="from")
    to: Literal["backtest", "dryrun", "live"] = "backtest"


class Approvals(Model):
    """How many people must approve: `required` for paper trading, `live` for live, `policy` for looser rules.

    Each must have one of `roles` in the world. `direct_signals`: whether an approval counts that was
    signalled to Temporal directly, where nobody checked the name.
    """

    required: int = Field(1, ge=0, le=20)
    live: int = Field(1, ge=1, le=20)
    policy: int = Field(0, ge=0, le=20)
    roles: tuple[Literal["author", "operator", "owner"], ...] = Field(
        ("operator", "owner"), min_length=1, max_length=3
    )
    expires: Seconds = 86_400
    direct_signals: bool = False


class ApplyLimits(Model):
    """How long an apply waits for acknowledgements of a freeze or unfreeze, and for open orders to end.

    `on_rollback`: what a rollback does with the positions of strategies that leave their domain by it.
    """

    freeze_timeout_ms: int = Field(30_000, ge=0, le=3_600_000)
    drain_timeout_ms: int = Field(60_000, ge=0, le=86_400_000)
    on_rollback: Literal["leave", "flatten"] = "leave"


class EdgesBefore(Model):
    """The edge that an apply closes first."""

    disable_edges_to: Literal["live"] | None = None


class EdgesAfter(Model):
    """The edge that an apply opens last."""

    enable_edges_to: Literal["live"] | None = None


class Edges(Model):
    """The edges between domains that an apply closes before its switch and opens with it."""

    pre_promotion: EdgesBefore = EdgesBefore(disable_edges_to="live")
    post_promotion: EdgesAfter = EdgesAfter(enable_edges_to="live")


class Slo(Model):
    """`cross_context_cache_hit` above 0 halts the strategy that reports it."""

    cross_context_cache_hit: Literal[0] = 0


class Observability(Model):
    """Service level objectives of the world."""

    slo: Slo = Slo()


class Campaign(Model):
    """How long a strategy must pass in a stage before the next, on the wall clock.

    `backtest`: before paper trading. `dryrun`: before live; it counts while a session of the strategy is
    open.
    """

    backtest: Seconds | None = None
    dryrun: Seconds | None = None


class GatingPolicy(Model):
    """The conditions of a promotion. `required_signals`: metrics that must not be missing."""

    domains: DomainPath = DomainPath()
    dataset_fingerprint: PlainLine | None = Field(None, min_length=1, max_length=200)
    share_policy: Literal["feature-artifacts-only"] | None = None
    approvals: Approvals = Approvals()
    apply: ApplyLimits = ApplyLimits()
    edges: Edges = Edges()
    observability: Observability = Observability()
    required_signals: tuple[MetricName, ...] = Field((), max_length=100)
    campaign: Campaign = Campaign()

    def approvals_for(self, mode: str) -> int:
        """Return how many people must approve before a strategy gets `mode`."""
        return {"live": self.approvals.live, "paper": self.approvals.required}.get(mode, 0)


class Policy(Model):
    """One version of a world's policy."""

    world: PlainLine | None = Field(None, max_length=64)
    version: int | None = Field(None, gt=0, lt=2**31)
    preset: PlainLine | None = Field(None, max_length=64)
    data_currency: DataCurrency = DataCurrency()
    selection: Selection = Selection()
    gating_policy: GatingPolicy = GatingPolicy()
    decision_ttl: Seconds = 300

    @property
    def judged_mode(self) -> Mode:
        """The mode that a judgment alone gives a passing strategy: paper where no approval is required, never
        live.
        """
        gating = self.gating_policy
        return "paper" if gating.domains.to != "backtest" and gating.approvals.required == 0 else "validate"

    @property
    def highest_mode(self) -> Mode:
        """The furthest mode that a strategy may get."""
        return MODE_OF[self.gating_policy.domains.to]
