"""The step that checks the constraints, in order of score: leverage, correlation, exposure, sector.

It comes before top-k, so that a slot which a constraint frees goes to the next candidate. Where exposure or
sectors are limited, every strategy gets a slot of equal weight, 1 / (number of strategies that can be
chosen). What the limits leave out stays uninvested: giving it to the others would exceed the limits again.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from activities.decisions.candidate import Candidate
from activities.decisions.steps import Correlate, Entry, JudgmentInputs, Shortlist
from qmtl_sdk.contracts.decisions import Violation, ViolationKind
from qmtl_sdk.contracts.policy import Constraints, Exposure, Selection

# Rounding error of a sum of equal slots; a sum that equals a limit passes.
_EPSILON = 1e-9


def check_constraints(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out each passing candidate that violates a constraint together with those chosen before it."""
    rules = inputs.policy.selection.constraints
    measured = sum(entry.passes and not entry.candidate.self_reported for entry in shortlist.entries)
    slot = _slot_weight(inputs.policy.selection, measured)
    chosen: list[Candidate] = []
    portfolio = _Portfolio(rules.exposure, slot or 0.0)
    entries: list[Entry] = []
    for entry in shortlist.entries:
        if not entry.passes:
            entries.append(entry)
            continue
        candidate = entry.candidate
        violations = (
            _leverage(rules.exposure, candidate)
            or _correlation(rules, candidate, chosen, inputs.correlate)
            or portfolio.violations(candidate)
        )
        if not violations:
            chosen.append(candidate)
            portfolio.add(candidate)
        entries.append(entry.violating(*violations))
    return replace(shortlist, entries=tuple(entries), slot=slot)


def _slot_weight(selection: Selection, passing: int) -> float | None:
    """Return the fixed weight of a slot if limits need one; None if the chosen share the whole world."""
    exposure = selection.constraints.exposure
    limited = (
        exposure.sector_cap is not None
        or exposure.gross_budget.long is not None
        or exposure.gross_budget.short is not None
    )
    count = min(selection.topk.total, passing) if selection.topk else passing
    return 1.0 / count if limited and count else None


def _leverage(rules: Exposure, candidate: Candidate) -> list[Violation]:
    if rules.max_leverage is None:
        return []
    rule = f"max_leverage = {rules.max_leverage:g}"
    leverage = candidate.metrics.get("leverage")
    if leverage is None:
        return [_violation("insufficient", rule, "its leverage is missing")]
    if leverage <= rules.max_leverage:
        return []
    return [_violation("leveraged", rule, f"its largest sum of positions is {leverage:.4g}")]


def _correlation(
    rules: Constraints, candidate: Candidate, chosen: Sequence[Candidate], correlate: Correlate
) -> list[Violation]:
    """Return the violation with the first chosen candidate that this one is correlated with."""
    if rules.correlation is None:
        return []
    limit = rules.correlation.max_pairwise
    rule = f"max_pairwise = {limit:g}"
    for other in chosen:
        found = correlate(candidate, other)
        if found is None:
            detail = f"it has too few days in common with {other.label}"
            return [_violation("insufficient", rule, detail)]
        if abs(found) > limit:
            detail = (
                f"its daily returns have a correlation of {found:.3f} with {other.label}, "
                "which has the higher score"
            )
            return [_violation("correlated", rule, detail)]
    return []


class _Portfolio:
    """Exposure and sector shares of the candidates chosen so far, as shares of the world (0 to 1)."""

    def __init__(self, rules: Exposure, slot: float) -> None:
        self._rules = rules
        self._slot = slot
        self._gross = {"long": 0.0, "short": 0.0}
        self._sectors: defaultdict[str, float] = defaultdict(float)

    def violations(self, candidate: Candidate) -> list[Violation]:
        """Return which limits would be exceeded with this candidate."""
        budget = self._rules.gross_budget
        violations = self._budget(candidate, "long", budget.long)
        if not violations:
            violations = self._budget(candidate, "short", budget.short)
        return [*violations, *self._sector(candidate)]

    def add(self, candidate: Candidate) -> None:
        """Add a chosen candidate."""
        for side in self._gross:
            self._gross[side] += self._slot * (candidate.metrics.get(f"gross_{side}") or 0.0)
        for sector in candidate.sectors:
            self._sectors[sector] += self._slot / len(candidate.sectors)

    def _budget(self, candidate: Candidate, side: str, limit: float | None) -> list[Violation]:
        if limit is None:
            return []
        rule = f"gross_budget.{side} = {limit:g}"
        gross = candidate.metrics.get(f"gross_{side}")
        if gross is None:
            return [_violation("insufficient", rule, f"its {side} exposure is missing")]
        share = self._slot * gross
        total = self._gross[side] + share
        if total <= limit + _EPSILON:
            return []
        detail = f"with its {share:.4g} the {side} exposure of the chosen would be {total:.4g}"
        return [_violation("exposed", rule, detail)]

    def _sector(self, candidate: Candidate) -> list[Violation]:
        limit = self._rules.sector_cap
        if limit is None:
            return []
        rule = f"sector_cap = {limit:g}"
        if not candidate.sectors:
            detail = "the sector of its streams is not known: name it in the preset's sectors"
            return [_violation("insufficient", rule, detail)]
        for sector in candidate.sectors:
            share = self._slot * candidate.sectors.count(sector) / len(candidate.sectors)
            total = self._sectors[sector] + share
            if total > limit + _EPSILON:
                detail = f"the share of the chosen in {sector} would be {total:.4g}"
                return [_violation("concentrated", rule, detail)]
        return []


def _violation(kind: ViolationKind, rule: str, detail: str) -> Violation:
    return Violation(step="constraints", kind=kind, rule=rule, detail=detail)
