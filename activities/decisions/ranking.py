"""The steps that rank the candidates: score and top-k."""

from collections import Counter
from dataclasses import replace

from activities.decisions.gates import figures
from activities.decisions.steps import Entry, JudgmentInputs, Shortlist
from qmtl_sdk.contracts.decisions import Violation
from qmtl_sdk.contracts.expressions import evaluate, parse
from qmtl_sdk.contracts.policy import TopK


def score_entries(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Compute every candidate's score, and order the passing ones by it, best first.

    Ties go to the older binding, then to the lesser strategy_id. Self-reported candidates come last.
    """
    rule = inputs.policy.selection.score
    expression = parse(rule)

    def score(entry: Entry) -> Entry:
        metrics = entry.candidate.metrics
        value = evaluate(expression, metrics)
        if value is not None:
            return replace(entry, score=float(value))
        if not entry.passes:
            return entry
        detail = figures(rule, metrics)
        return entry.violating(Violation(step="score", kind="insufficient", rule=rule, detail=detail))

    return replace(shortlist, entries=tuple(sorted(shortlist.each(score).entries, key=_score_order)))


def select_top_k(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out passing candidates beyond top-k, in total or of their side, and rank the chosen ones."""
    chosen: list[Entry] = []
    by_side: Counter[str] = Counter()
    place = 0
    entries: list[Entry] = []
    for entry in shortlist.entries:
        if not entry.passes:
            entries.append(entry)
            continue
        place += 1
        violation = _outranked(inputs.policy.selection.topk, entry, place, chosen, by_side)
        if violation is not None:
            entries.append(replace(entry.violating(violation), rank=place))
            continue
        chosen.append(entry)
        by_side[entry.candidate.main_side] += 1
        entries.append(replace(entry, rank=len(chosen)))
    return replace(shortlist, entries=tuple(entries))


def _score_order(entry: Entry) -> tuple[bool, bool, float, int, str]:
    candidate = entry.candidate
    # What an author says of itself takes nothing from what the service has measured.
    own = bool(candidate.self_reported)
    return (not entry.passes, own, -(entry.score or 0.0), candidate.bound, candidate.strategy_id)


def _outranked(
    topk: TopK | None, entry: Entry, place: int, chosen: list[Entry], by_side: Counter[str]
) -> Violation | None:
    """Return why an entry at `place` in order of score is not chosen after those that are."""
    if topk is None:
        return None
    figure = f"its score of {entry.score:.4g} is rank {place}"
    if len(chosen) >= topk.total:
        last = chosen[-1]
        detail = f"{figure}; the last one taken, {last.candidate.label}, has {last.score:.4g}"
        return Violation(step="topk", kind="outranked", rule=f"topk.total = {topk.total}", detail=detail)
    side = entry.candidate.main_side
    limit = topk.by_side.long if side == "long" else topk.by_side.short
    if limit is None or by_side[side] < limit:
        return None
    detail = f"{figure}, and {by_side[side]} of its side are taken"
    return Violation(step="topk", kind="outranked", rule=f"topk.by_side.{side} = {limit}", detail=detail)
