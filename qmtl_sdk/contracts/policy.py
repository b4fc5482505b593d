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
from qmtl_sdk.contracts.model import Model


def _condition(text: str) -> str:
    if not is_condition(parse(text)):
        raise QmtlError("E_EXPRESSION", f"“{text}” is a number, a gate needs a condition", "compare it: “sharpe >= 0.6”")
    return text


def _number(text: str) -> str:
    if is_condition(parse(text)):
        raise QmtlError("E_EXPRESSION", f"“{text}” is a condition, a score needs a number", "write it like “sharpe - 0.2*ulcer”")
    return text


Condition = Annotated[str, AfterValidator(_condition)]
Score = Annotated[str, AfterValidator(_number)]


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


class TopK(Model):
    """How many strategies may be active at once."""

    total: int = Field(gt=0)


class Selection(Model):
    gates: Gates = Gates()
    score: Score = "sharpe"
    topk: TopK | None = None


class DomainPath(Model):
    """How far a passing strategy may go: from validation to paper trading. (Live needs a gate and an apply.)"""

    start: Literal["backtest"] = Field("backtest", alias="from")
    to: Literal["backtest", "dryrun"] = "backtest"


class Approvals(Model):
    """How many people must agree before a strategy goes further."""

    required: int = Field(1, ge=0)


class GatingPolicy(Model):
    domains: DomainPath = DomainPath()
    approvals: Approvals = Approvals()


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
        return "paper" if gating.domains.to == "dryrun" and gating.approvals.required == 0 else "validate"


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


def parse_policy(text: str) -> Policy:
    """A policy from YAML. Raises QmtlError: E_POLICY_INVALID, E_EXPRESSION, E_METRIC_UNKNOWN."""
    try:
        body = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise QmtlError("E_POLICY_INVALID", f"the policy is not YAML: {_one_line(error)}", "mend the text at that place") from error
    if not isinstance(body, dict):
        raise QmtlError("E_POLICY_INVALID", "a policy is a mapping of keys", "see docs/policy.md for an example")
    return policy_from(body)


def policy_from(body: dict[str, Any]) -> Policy:
    """A policy from its mapping, presets expanded. Raises as `parse_policy`."""
    preset = body.get("preset")
    if preset is not None:
        if preset not in PRESETS:
            raise QmtlError("E_POLICY_INVALID", f"{preset!r} is not a preset{nearest(str(preset), list(PRESETS))}", f"known: {', '.join(PRESETS)}")
        body = _merge(PRESETS[preset], body)
    policy: Policy = validated(Policy, body, "E_POLICY_INVALID", "policy")
    return policy


def validated(model: type[Any], body: Any, code: str, what: str) -> Any:
    """`model` from `body`, or one clear QmtlError that says where the first fault is and lists them all. (Any: one door for every contract.)"""
    try:
        return model.model_validate(body)
    except ValidationError as error:
        faults = [_fault(item, model) for item in error.errors(include_url=False, include_input=False)]
        raise QmtlError(code, f"the {what} is refused: {faults[0]}", "mend it and send it again", faults=faults[:20]) from error


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
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, dict) and key != "gates" else value
    return merged


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
