"""A world's policy: which evidence it asks for, how it ranks, and how many it takes.

A policy is versioned YAML. A preset (`conservative`, `moderate`, `aggressive`, `sandbox`) expands to the same schema, and what is written
beside it wins. Every expression is parsed when the policy is uploaded, so that a misspelt metric never reaches a judgment.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from qmtl_sdk.contracts.durations import Seconds
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.expressions import is_condition, parse
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.contracts.model import Model


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
    if name not in METRICS:
        raise QmtlError(
            "E_METRIC_UNKNOWN",
            f"{name!r} is not a metric{nearest(name, list(METRICS))}",
            f"known: {', '.join(METRICS)}",
        )
    return name


Condition = Annotated[str, AfterValidator(_condition)]
Score = Annotated[str, AfterValidator(_number)]
MetricName = Annotated[str, AfterValidator(_metric)]


class DataCurrency(Model):
    """`max_lag`: how old the newest bar may be on the world's clock. `min_history`: the least span of data. In seconds, or as “3d”."""

    max_lag: Seconds | None = None
    min_history: Seconds | None = None


class Gates(Model):
    """Conditions joined by `and` or `or`; either may hold further groups."""

    all_of: "tuple[Condition | Gates, ...]" = Field((), alias="and")
    any_of: "tuple[Condition | Gates, ...]" = Field((), alias="or")

    @model_validator(mode="after")
    def _one_kind(self) -> "Gates":
        if self.all_of and self.any_of:
            raise ValueError("a group of gates has either `and` or `or`; nest a group to have both")
        return self


class BySide(Model):
    """At most so many of the strategies that only buy, and of those that only sell. One that does both counts by what it mostly does."""

    long: int | None = Field(None, ge=0)
    short: int | None = Field(None, ge=0)


class TopK(Model):
    """How many strategies may be active at once."""

    total: int = Field(gt=0)
    by_side: BySide = BySide()


class Correlation(Model):
    """The largest absolute correlation of daily returns that two chosen strategies may have."""

    max_pairwise: float = Field(ge=0, le=1)


class GrossBudget(Model):
    """The largest share of the world (weight · gross exposure) on either side."""

    long: float | None = Field(None, ge=0)
    short: float | None = Field(None, ge=0)


class Exposure(Model):
    """`max_leverage`: the largest sum of absolute positions that a strategy may hold. `sector_cap`: the largest share of the chosen in one sector (0…1)."""

    gross_budget: GrossBudget = GrossBudget()
    max_leverage: float | None = Field(None, gt=0)
    sector_cap: float | None = Field(None, gt=0, le=1)


class Constraints(Model):
    correlation: Correlation | None = None
    exposure: Exposure = Exposure()


class Bands(Model):
    """One that was active stays while `metric` ≥ `exit`; a new one comes in at ≥ `enter`."""

    metric: MetricName
    enter: float
    exit: float

    @model_validator(mode="after")
    def _in_order(self) -> "Bands":
        if self.exit > self.enter:
            raise ValueError(
                f"exit ({self.exit:g}) lies above enter ({self.enter:g}): what comes in would go out at once"
            )
        return self


class Hysteresis(Model):
    """In after `promote_after` passes in a row, out after `demote_after` failures in a row, and neither before `min_dwell` in the present state (world time)."""

    promote_after: int = Field(1, ge=1)
    demote_after: int = Field(1, ge=1)
    min_dwell: Seconds | None = None
    bands: Bands | None = None


class Selection(Model):
    gates: Gates = Gates()
    score: Score = "sharpe"
    topk: TopK | None = None
    constraints: Constraints = Constraints()
    hysteresis: Hysteresis = Hysteresis()


class DomainPath(Model):
    """How far a passing strategy may go: from validation over paper trading to live."""

    start: Literal["backtest"] = Field("backtest", alias="from")
    to: Literal["backtest", "dryrun", "live"] = "backtest"


class Approvals(Model):
    """How many people must agree before a strategy goes further: `required` to paper trading, `live` to live (never nobody), each with one of `roles` in the world.

    `direct_signals`: whether an approval counts that was sent straight to Temporal, in a name that nobody checked.
    """

    required: int = Field(1, ge=0, le=20)
    live: int = Field(1, ge=1, le=20)
    roles: tuple[Literal["author", "operator", "owner"], ...] = Field(("operator", "owner"), min_length=1)
    expires: Seconds = 86_400
    direct_signals: bool = False


class ApplyLimits(Model):
    """How long an apply waits: for everyone to say that they have heard of a freeze or unfreeze, and for open orders to end."""

    freeze_timeout_ms: int = Field(30_000, ge=0, le=3_600_000)
    drain_timeout_ms: int = Field(60_000, ge=0, le=86_400_000)


class EdgesBefore(Model):
    disable_edges_to: Literal["live"] | None = None


class EdgesAfter(Model):
    enable_edges_to: Literal["live"] | None = None


class Edges(Model):
    """Which edges between domains an apply closes before and opens after a promotion."""

    pre_promotion: EdgesBefore = EdgesBefore(disable_edges_to="live")
    post_promotion: EdgesAfter = EdgesAfter(enable_edges_to="live")


class Slo(Model):
    """`cross_context_cache_hit` above 0 halts the world."""

    cross_context_cache_hit: Literal[0] = 0


class Observability(Model):
    slo: Slo = Slo()


class Campaign(Model):
    """How long a strategy must have been good in a stage before it goes to the next, on the wall clock: `backtest` before paper trading, `dryrun` before live."""

    backtest: Seconds | None = None
    dryrun: Seconds | None = None


class GatingPolicy(Model):
    """What stands between a decision and a promotion. `required_signals`: metrics that must be there, not missing."""

    domains: DomainPath = DomainPath()
    dataset_fingerprint: str | None = Field(None, min_length=1, max_length=200)
    share_policy: Literal["feature-artifacts-only"] | None = None
    approvals: Approvals = Approvals()
    apply: ApplyLimits = ApplyLimits()
    edges: Edges = Edges()
    observability: Observability = Observability()
    required_signals: tuple[MetricName, ...] = ()
    campaign: Campaign = Campaign()

    def approvals_for(self, mode: str) -> int:
        """How many must agree before a strategy comes to `mode`."""
        return self.approvals.live if mode == "live" else self.approvals.required if mode == "paper" else 0


class Policy(Model):
    """One version of a world's policy."""

    world: str | None = None
    version: int | None = Field(None, gt=0)
    preset: str | None = None
    data_currency: DataCurrency = DataCurrency()
    selection: Selection = Selection()
    gating_policy: GatingPolicy = GatingPolicy()
    decision_ttl: Seconds = 300

    @property
    def judged_mode(self) -> str:
        """What a judgment alone lets a passing strategy do: paper trading where nobody need approve of it, else validation. Never live."""
        gating = self.gating_policy
        return "paper" if gating.domains.to != "backtest" and gating.approvals.required == 0 else "validate"

    @property
    def highest_mode(self) -> str:
        """How far a strategy may come at all."""
        return {"backtest": "validate", "dryrun": "paper", "live": "live"}[self.gating_policy.domains.to]


PRESETS: dict[str, dict[str, Any]] = {
    "sandbox": {"selection": {"gates": {"and": ["sample_days >= 1"]}, "score": "sharpe"}},
    "conservative": {
        "data_currency": {"max_lag": "3d", "min_history": "365d"},
        "selection": {
            "gates": {"and": ["sample_days >= 250", "trades >= 30", "sharpe >= 1.0", "max_drawdown <= 0.2"]},
            "score": "sharpe - ulcer",
            "topk": {"total": 4},
        },
    },
    "moderate": {
        "data_currency": {"max_lag": "3d", "min_history": "250d"},
        "selection": {
            "gates": {"and": ["sample_days >= 250", "trades >= 20", "sharpe >= 0.6", "max_drawdown <= 0.35"]},
            "score": "sharpe + 0.1*win_rate - 0.2*ulcer",
            "topk": {"total": 8},
        },
    },
    "aggressive": {
        "data_currency": {"max_lag": "7d", "min_history": "90d"},
        "selection": {
            "gates": {"and": ["sample_days >= 90", "trades >= 10", "sharpe >= 0.3", "max_drawdown <= 0.5"]},
            "score": "sharpe",
            "topk": {"total": 16},
        },
    },
}


class Difference(Model):
    """A key that two versions of a policy have otherwise; None: it is not set. (Any: a policy's values.)"""

    key: str
    before: Any = None
    after: Any = None


def differences(one: Policy, other: Policy) -> list[Difference]:
    """By dotted key, in order."""
    before, after = (
        _dotted(policy.model_dump(mode="json", by_alias=True, exclude={"world", "version"}))
        for policy in (one, other)
    )
    return [
        Difference(key=key, before=before.get(key), after=after.get(key))
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
    ]


def _dotted(body: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in body.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def parse_policy(text: str) -> Policy:
    """A policy from YAML. Raises QmtlError: E_POLICY_INVALID, E_EXPRESSION, E_METRIC_UNKNOWN."""
    return policy_from(policy_mapping(text))


def policy_mapping(text: str) -> dict[str, Any]:
    """What a policy's YAML says, unchecked. Raises QmtlError (E_POLICY_INVALID). (Any: whatever YAML has.)"""
    return mapping_of(text, "E_POLICY_INVALID", "policy", "see docs/policy.md for an example")


def policy_from(body: dict[str, Any]) -> Policy:
    """A policy from its mapping, presets expanded. Raises as `parse_policy`."""
    preset = body.get("preset")
    if preset is not None:
        if preset not in PRESETS:
            raise QmtlError(
                "E_POLICY_INVALID",
                f"{preset!r} is not a preset{nearest(str(preset), list(PRESETS))}",
                f"known: {', '.join(PRESETS)}",
            )
        body = _merge(PRESETS[preset], body)
    policy: Policy = validated(Policy, body, "E_POLICY_INVALID", "policy")
    return policy


def mapping_of(text: str, code: str, what: str, remedy: str) -> dict[str, Any]:
    """The mapping that a person's YAML holds. Raises QmtlError (`code`). (Any: whatever YAML has; a contract checks it.)"""
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise QmtlError(
            code, f"the {what} is not YAML: {_one_line(error)}", "mend the text at that place"
        ) from error
    if not isinstance(body, dict):
        raise QmtlError(code, f"a {what} is a mapping of keys", remedy)
    return body


def validated(model: type[Any], body: Any, code: str, what: str) -> Any:
    """`model` from `body`, or one clear QmtlError that says where the first fault is and lists them all. (Any: one door for every contract.)"""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = [_fault(item, model) for item in error.errors(include_url=False, include_input=False)]
        raise QmtlError(
            code, f"the {what} is refused: {faults[0]}", "mend it and send it again", faults=faults[:20]
        ) from error


def known_keys(model: Any) -> Iterator[str]:
    """Every key that a contract and the contracts inside it know. (Any: Pydantic's field types are only known at run time.)"""
    for name, field in model.model_fields.items():
        yield field.alias or name
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in inner:
            if isinstance(kind, type) and issubclass(kind, Model) and kind is not model:
                yield from known_keys(kind)


def _fault(item: Any, model: Any) -> str:
    where = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-"))
    if item["type"] == "extra_forbidden":
        known = list(dict.fromkeys(known_keys(model)))
        return f"{where} is not a known key{nearest(str(item['loc'][-1]), known)}"
    return f"{where}: {item['msg']}" if where else str(item["msg"])


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = (
            _merge(mine, value)
            if isinstance(mine, dict) and isinstance(value, dict) and key != "gates"
            else value
        )
    return merged


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
