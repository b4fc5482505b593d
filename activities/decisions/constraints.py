"""The step that checks the constraints, in order of score: leverage, correlation, exposure, sector.

It comes before top-k, so that a slot which a constraint frees goes to the next candidate. Where exposure or
sectors are limited, every strategy gets a slot of equal weight, 1 / (number of strategies that can be
chosen). What the limits leave out stays uninvested: giving it to the others would exceed the limits again.
"""

from collections import defaultdict
from dataclasses import replace

from activities.decisions.candidate import Candidate
from activities.decisions.steps import ClashFinders, Entry, JudgmentInputs, Shortlist
from qmtl_sdk.contracts.decisions import Violation, ViolationKind
from qmtl_sdk.contracts.policy import Correlation, Exposure, Selection

# Rounding error of a sum of equal slots; a sum that equals a limit passes.
_EPSILON = 1e-9


def check_constraints(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out each passing candidate that violates a constraint together with those chosen before it."""
    rules = inputs.policy.selection.constraints
    measured = sum(entry.passes and not entry.candidate.self_reported for entry in shortlist.entries)
    slot = _slot_weight(inputs.policy.selection, measured)
    diversification = _Diversification(rules.correlation, inputs.clash_finder)
    portfolio = _Portfolio(rules.exposure, slot or 0.0)
    entries: list[Entry] = []
    for entry in shortlist.entries:
        if not entry.passes:
            entries.append(entry)
            continue
        candidate = entry.candidate
        violations = (
            _leverage(rules.exposure, candidate)
            or diversification.violations(candidate)
            or portfolio.violations(candidate)
        )
        if not violations:
            diversification.add(candidate)
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


class _Diversification:
    """The candidates chosen so far, with none of which another may be correlated."""

    def __init__(self, rules: Correlation | None, clash_finder: ClashFinders) -> None:
        self._finder = clash_finder(rules.max_pairwise) if rules else None
        self._rule = f"max_pairwise = {rules.max_pairwise:g}" if rules else ""

    def violations(self, candidate: Candidate) -> list[Violation]:
        """Return the violation with the first chosen candidate that this one is correlated with."""
        clash = self._finder.clash(candidate) if self._finder else None
        if clash is None:
            return []
        if clash.correlation is None:
            detail = f"it has too few days in common with {clash.other.label}"
            return [_violation("insufficient", self._rule, detail)]
        detail = (
            f"its daily returns have a correlation of {clash.correlation:.3f} with {clash.other.label}, "
            "which has the higher score"
        )
        return [_violation("correlated", self._rule, detail)]

    def add(self, candidate: Candidate) -> None:
        """Add a chosen candidate."""
        if self._finder:
            self._finder.add(candidate)


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
