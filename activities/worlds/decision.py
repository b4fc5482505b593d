"""The judgment of a world: one pure function of evidence and policy.

Data currency → gates → score → top-k. Each strategy that is left out says at which step, by which rule and by what figure. Ties in score go to the
older binding, then to the lesser strategy_id. The active share the world's weight equally.
"""

from collections.abc import Mapping
from datetime import datetime

from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.durations import words
from qmtl_sdk.contracts.expressions import evaluate, metrics_in, parse
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Gates, Policy
from qmtl_sdk.contracts.worlds import StrategyDecision, UtcTime, Violation


class Candidate(Model):
    """A strategy's newest evidence. `error` says why it has no metrics; `bound` is its binding's age, lower is older."""

    strategy_id: str
    name: str
    bound: int
    metrics: dict[str, float | None] = {}
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    error_code: str = ""
    error: str = ""


def judge(policy: Policy, candidates: tuple[Candidate, ...], now: datetime) -> tuple[StrategyDecision, ...]:
    """A decision for every candidate, the active first by rank, then the rest by name. `now` is the world's time."""
    passed: list[tuple[Candidate, float]] = []
    out: list[StrategyDecision] = []
    for candidate in candidates:
        violations = _evidence(candidate) or [*_currency(policy, candidate, now), *_failures(policy.selection.gates, candidate.metrics)]
        score = _score(policy, candidate.metrics)
        if not violations and score is None:
            violations = [_insufficient("score", policy.selection.score, candidate.metrics)]
        if violations or score is None:
            out.append(_left_out(candidate, score, violations))
        else:
            passed.append((candidate, score))
    passed.sort(key=lambda pair: (-pair[1], pair[0].bound, pair[0].strategy_id))
    limit = policy.selection.topk.total if policy.selection.topk else len(passed)
    weight = 1.0 / min(limit, len(passed)) if passed else 0.0
    chosen = [_active(candidate, score, rank, weight) for rank, (candidate, score) in enumerate(passed[:limit], 1)]
    for rank, (candidate, score) in enumerate(passed[limit:], limit + 1):
        last = passed[limit - 1]
        detail = f"its score of {score:.4g} is rank {rank}; the last one taken, {last[0].name or last[0].strategy_id[:17]}, has {last[1]:.4g}"
        out.append(_left_out(candidate, score, [Violation(step="topk", kind="outranked", rule=f"topk.total = {limit}", detail=detail)], rank))
    return (*chosen, *sorted(out, key=lambda item: (item.name, item.strategy_id)))


def summary(decisions: tuple[StrategyDecision, ...]) -> str:
    """The judgment in one line."""
    active = [item.name or item.strategy_id[:17] for item in decisions if item.active]
    return f"{len(active)} of {len(decisions)} active" + (f": {', '.join(active[:5])}{' …' if len(active) > 5 else ''}" if active else "")


def etag_of(world_id: str, policy_version: int, effective_mode: str, decisions: tuple[StrategyDecision, ...]) -> str:
    """A hash of what was decided, never of when."""
    return hash_of({"world": world_id, "policy": policy_version, "mode": effective_mode, "strategies": [item.json_dict() for item in decisions]})


def _evidence(candidate: Candidate) -> list[Violation]:
    if not candidate.error_code:
        return []
    return [Violation(step="evidence", kind="rejected", rule=candidate.error_code, detail=candidate.error)]


def _currency(policy: Policy, candidate: Candidate, now: datetime) -> list[Violation]:
    found, rules = [], policy.data_currency
    if rules.max_lag is not None:
        rule = f"max_lag = {words(rules.max_lag)}"
        if candidate.data_last is None:
            found.append(Violation(step="data_currency", kind="insufficient", rule=rule, detail="the time of the newest bar is not known"))
        elif (lag := (now - candidate.data_last).total_seconds()) > rules.max_lag:
            found.append(Violation(step="data_currency", kind="stale", rule=rule, detail=f"the newest bar closed {words(lag)} ago, at {candidate.data_last.isoformat()}"))
    if rules.min_history is not None:
        rule = f"min_history = {words(rules.min_history)}"
        if candidate.data_first is None or candidate.data_last is None:
            found.append(Violation(step="data_currency", kind="insufficient", rule=rule, detail="the range of the data is not known"))
        elif (span := (candidate.data_last - candidate.data_first).total_seconds()) < rules.min_history:
            found.append(Violation(step="data_currency", kind="short_history", rule=rule, detail=f"the data reaches back {words(span)}"))
    return found


def _failures(gates: Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    """Why a group of gates does not hold; nothing when it does."""
    if gates.any_of:
        alternatives = [_gate(gate, metrics) for gate in gates.any_of]
        return [] if any(not found for found in alternatives) else [item for found in alternatives for item in found]
    return [item for gate in gates.all_of for item in _gate(gate, metrics)]


def _gate(gate: str | Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    if isinstance(gate, Gates):
        return _failures(gate, metrics)
    verdict = evaluate(parse(gate), metrics)
    if verdict is None:
        return [_insufficient("gates", gate, metrics)]
    return [] if verdict else [Violation(step="gates", kind="failed", rule=gate, detail=_figures(gate, metrics))]


def _insufficient(step: str, rule: str, metrics: Mapping[str, float | None]) -> Violation:
    return Violation.model_validate({"step": step, "kind": "insufficient", "rule": rule, "detail": _figures(rule, metrics)})


def _figures(rule: str, metrics: Mapping[str, float | None]) -> str:
    """The values that a rule saw: `sharpe is 0.31`."""
    values = [(name, metrics.get(name)) for name in metrics_in(parse(rule))]
    return ", ".join(f"{name} is {'missing' if value is None else format(value, '.4g')}" for name, value in values)


def _score(policy: Policy, metrics: Mapping[str, float | None]) -> float | None:
    value = evaluate(parse(policy.selection.score), metrics)
    return None if value is None else float(value)


def _active(candidate: Candidate, score: float, rank: int, weight: float) -> StrategyDecision:
    annual = candidate.metrics.get("annual_return")
    contribution = None if annual is None else weight * annual
    return StrategyDecision(strategy_id=candidate.strategy_id, name=candidate.name, active=True, weight=weight, rank=rank, score=score, contribution=contribution)


def _left_out(candidate: Candidate, score: float | None, violations: list[Violation], rank: int | None = None) -> StrategyDecision:
    return StrategyDecision(strategy_id=candidate.strategy_id, name=candidate.name, active=False, rank=rank, score=score, violations=tuple(violations))
