"""The judgment of a world: one pure function of evidence and policy.

1. Data currency → gates (with the bands of hysteresis) → score. Ties in score go to the older binding, then to the lesser strategy_id.
2. Constraints, in order of score, before top-k: a slot that one frees goes to the next.
3. Top-k, in all and by side.
4. Hysteresis: who comes in and who goes out waits until it has passed or failed often and long enough. One that is still held keeps its slot.

Each strategy that is left out says at which step, by which rule and by what figure.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

from activities.decisions.candidate import Candidate, HysteresisState, Scored
from activities.decisions.constraints import Correlate, constrain, slot_weight
from activities.decisions.hysteresis import in_band, next_state
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope, StrategyDecision, Violation
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.expressions import evaluate, metrics_in, parse
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Gates, Policy


class JudgmentResult(Model):
    """A decision for every candidate, the active first by rank, then the rest by name; and what is to be remembered of each."""

    strategies: tuple[StrategyDecision, ...]
    states: dict[str, HysteresisState]


def judge(
    policy: Policy,
    candidates: Sequence[Candidate],
    now: datetime,
    states: Mapping[str, HysteresisState],
    correlate: Correlate,
    counts: bool = True,
) -> JudgmentResult:
    """`now` is the world's time; `states` what was remembered of the judgment before. One that only renews a decision does not count as another pass or failure."""
    passed, failed = _passed(policy, candidates, now, states)
    topk = policy.selection.topk
    slot = slot_weight(
        policy.selection.constraints.exposure, min(topk.total, len(passed)) if topk else len(passed)
    )
    kept, constrained = constrain(policy.selection.constraints, passed, slot, correlate)
    chosen, outranked = _top(policy, kept)
    today = {item.candidate.strategy_id: (rank, item) for rank, item in enumerate(chosen, 1)}
    left_out = {item.strategy_id: item for item in (*failed, *constrained, *outranked)}
    return _settle(policy, candidates, now, states, today, left_out, slot, counts)


def _passed(
    policy: Policy, candidates: Sequence[Candidate], now: datetime, states: Mapping[str, HysteresisState]
) -> tuple[list[Scored], list[StrategyDecision]]:
    """Those that pass data currency, gates and bands and have a score, best first; and the rest with the reason."""
    passed: list[Scored] = []
    out: list[StrategyDecision] = []
    for candidate in candidates:
        bands = in_band(policy.selection.hysteresis, candidate, states.get(candidate.strategy_id))
        violations = _evidence(candidate) or [
            *_currency(policy, candidate, now),
            *_failures(policy.selection.gates, candidate.metrics),
            *bands,
        ]
        score = _score(policy, candidate.metrics)
        if not violations and score is None:
            violations = [_insufficient("score", policy.selection.score, candidate.metrics)]
        if violations or score is None:
            out.append(candidate.left_out(score, violations))
        else:
            passed.append(Scored(candidate=candidate, score=score))
    passed.sort(key=lambda item: (-item.score, item.candidate.bound, item.candidate.strategy_id))
    return passed, out


def _top(policy: Policy, kept: Sequence[Scored]) -> tuple[list[Scored], list[StrategyDecision]]:
    topk = policy.selection.topk
    if topk is None:
        return list(kept), []
    chosen: list[Scored] = []
    out: list[StrategyDecision] = []
    sides: Counter[str] = Counter()
    for rank, item in enumerate(kept, 1):
        side = item.candidate.side
        limit = topk.by_side.long if side == "long" else topk.by_side.short
        if len(chosen) >= topk.total:
            last = chosen[-1]
            detail = f"its score of {item.score:.4g} is rank {rank}; the last one taken, {last.candidate.label}, has {last.score:.4g}"
            rule = f"topk.total = {topk.total}"
        elif limit is not None and sides[side] >= limit:
            detail, rule = (
                f"its score of {item.score:.4g} is rank {rank}, and {sides[side]} of its side are taken",
                f"topk.by_side.{side} = {limit}",
            )
        else:
            chosen.append(item)
            sides[side] += 1
            continue
        out.append(
            item.candidate.left_out(
                item.score, [Violation(step="topk", kind="outranked", rule=rule, detail=detail)], rank
            )
        )
    return chosen, out


def _settle(
    policy: Policy,
    candidates: Sequence[Candidate],
    now: datetime,
    states: Mapping[str, HysteresisState],
    today: Mapping[str, tuple[int, Scored]],
    left_out: Mapping[str, StrategyDecision],
    slot: float | None,
    counts: bool,
) -> JudgmentResult:
    """Hysteresis over what today says, and the weights of those that are in."""
    rules, topk = policy.selection.hysteresis, policy.selection.topk
    new: dict[str, HysteresisState] = {}
    active: list[tuple[float, Candidate, StrategyDecision]] = []
    out: list[StrategyDecision] = []
    # Who is in comes first: a slot that is still held can't be given to another. Then by today's rank.
    order = sorted(
        candidates,
        key=lambda item: (
            not _was_active(states, item),
            today[item.strategy_id][0] if item.strategy_id in today else len(candidates),
            item.bound,
            item.strategy_id,
        ),
    )
    for candidate in order:
        name, before = candidate.strategy_id, states.get(candidate.strategy_id)
        passes = name in today
        full = (
            topk is not None and len(active) >= topk.total and passes and not _was_active(states, candidate)
        )
        verdict, state, waits = next_state(rules, before, passes, bool(candidate.error_code), now, counts)
        if full and verdict == "promote":
            assert topk is not None  # only a limit can be full
            state = state.model_copy(update={"active": False, "since": before.since if before else now})
            waits = f"all {topk.total} slots are still held"
        new[name] = state
        score = today[name][1].score if passes else left_out[name].score
        if state.active:
            held = (
                ()
                if passes
                else (
                    *left_out[name].violations,
                    Violation(
                        step="hysteresis",
                        kind="held",
                        rule=_rule(policy, "demote_after"),
                        detail=f"held for now: {waits}",
                    ),
                )
            )
            rank = today[name][0] if passes else left_out[name].rank
            decision = StrategyDecision(
                strategy_id=name, name=candidate.name, active=True, rank=rank, score=score, violations=held
            )
            active.append((today[name][0] if passes else float("inf"), candidate, decision))
        elif passes:
            violation = Violation(
                step="hysteresis",
                kind="waiting",
                rule=_rule(policy, "promote_after"),
                detail=f"it passes, and waits: {waits}",
            )
            out.append(candidate.left_out(score, [violation], today[name][0]))
        else:
            out.append(left_out[name])
    weight = slot if slot is not None else 1.0 / len(active) if active else 0.0
    active.sort(key=lambda item: (item[0], item[1].bound, item[1].strategy_id))
    # Held ones come on top of the slots that were counted: together never more than the world.
    weight = min(weight, 1.0 / len(active)) if active else weight
    chosen = [_weighted(candidate, decision, weight) for _, candidate, decision in active]
    return JudgmentResult(
        strategies=(*chosen, *sorted(out, key=lambda item: (item.name, item.strategy_id))), states=new
    )


def _was_active(states: Mapping[str, HysteresisState], candidate: Candidate) -> bool:
    found = states.get(candidate.strategy_id)
    return found is not None and found.active


def _rule(policy: Policy, name: str) -> str:
    rules = policy.selection.hysteresis
    dwell = f", min_dwell = {format_duration(rules.min_dwell)}" if rules.min_dwell else ""
    return f"{name} = {getattr(rules, name)}{dwell}"


def summary(decisions: tuple[StrategyDecision, ...]) -> str:
    """The judgment in one line."""
    active = [item.label for item in decisions if item.active]
    return f"{len(active)} of {len(decisions)} active" + (
        f": {', '.join(active[:5])}{' …' if len(active) > 5 else ''}" if active else ""
    )


def etag_of(
    world_id: str, policy_version: int, effective_mode: str, decisions: tuple[StrategyDecision, ...]
) -> str:
    """A hash of what was decided, never of when."""
    return hash_of(
        {
            "world": world_id,
            "policy": policy_version,
            "mode": effective_mode,
            "strategies": [item.json_dict() for item in decisions],
        }
    )


def _evidence(candidate: Candidate) -> list[Violation]:
    if not candidate.error_code:
        return []
    return [Violation(step="evidence", kind="rejected", rule=candidate.error_code, detail=candidate.error)]


def _currency(policy: Policy, candidate: Candidate, now: datetime) -> list[Violation]:
    found, rules = [], policy.data_currency
    if rules.max_lag is not None:
        rule = f"max_lag = {format_duration(rules.max_lag)}"
        if candidate.data_last is None:
            found.append(
                Violation(
                    step="data_currency",
                    kind="insufficient",
                    rule=rule,
                    detail="the time of the newest bar is not known",
                )
            )
        elif (lag := (now - candidate.data_last).total_seconds()) > rules.max_lag:
            found.append(
                Violation(
                    step="data_currency",
                    kind="stale",
                    rule=rule,
                    detail=f"the newest bar closed {format_duration(lag)} ago, at {candidate.data_last.isoformat()}",
                )
            )
    if rules.min_history is not None:
        rule = f"min_history = {format_duration(rules.min_history)}"
        if candidate.data_first is None or candidate.data_last is None:
            found.append(
                Violation(
                    step="data_currency",
                    kind="insufficient",
                    rule=rule,
                    detail="the range of the data is not known",
                )
            )
        elif (span := (candidate.data_last - candidate.data_first).total_seconds()) < rules.min_history:
            found.append(
                Violation(
                    step="data_currency",
                    kind="short_history",
                    rule=rule,
                    detail=f"the data reaches back {format_duration(span)}",
                )
            )
    return found


def _failures(gates: Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    """Why a group of gates does not hold; nothing when it does."""
    if gates.any_of:
        alternatives = [_gate(gate, metrics) for gate in gates.any_of]
        return (
            []
            if any(not found for found in alternatives)
            else [item for found in alternatives for item in found]
        )
    return [item for gate in gates.all_of for item in _gate(gate, metrics)]


def _gate(gate: str | Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    if isinstance(gate, Gates):
        return _failures(gate, metrics)
    verdict = evaluate(parse(gate), metrics)
    if verdict is None:
        return [_insufficient("gates", gate, metrics)]
    return (
        [] if verdict else [Violation(step="gates", kind="failed", rule=gate, detail=_figures(gate, metrics))]
    )


def _insufficient(step: str, rule: str, metrics: Mapping[str, float | None]) -> Violation:
    return Violation.model_validate(
        {"step": step, "kind": "insufficient", "rule": rule, "detail": _figures(rule, metrics)}
    )


def _figures(rule: str, metrics: Mapping[str, float | None]) -> str:
    """The values that a rule saw: `sharpe is 0.31`."""
    values = [(name, metrics.get(name)) for name in metrics_in(parse(rule))]
    return ", ".join(
        f"{name} is {'missing' if value is None else format(value, '.4g')}" for name, value in values
    )


def _score(policy: Policy, metrics: Mapping[str, float | None]) -> float | None:
    value = evaluate(parse(policy.selection.score), metrics)
    return None if value is None else float(value)


def _weighted(candidate: Candidate, decision: StrategyDecision, weight: float) -> StrategyDecision:
    annual = candidate.metrics.get("annual_return")
    return decision.model_copy(
        update={
            "weight": weight,
            "side": candidate.holds,
            "contribution": None if annual is None else weight * annual,
        }
    )


def furthest(
    judged_mode: str, strategies: Sequence[StrategyDecision], activations: Sequence[ActivationEnvelope]
) -> str:
    """The furthest stage of the strategies that a decision leaves active."""
    active = {item.strategy_id for item in strategies if item.active}
    modes = [item.effective_mode for item in activations if item.active and item.strategy_id in active]
    return max([judged_mode, *(mode for mode in modes if mode)], key=rank_of)
