"""The constraints of a decision, in order of score: leverage, correlation, exposure, sector. They come before top-k, so that a slot freed by one goes to the next.

Where exposure or sectors are limited, every strategy gets a slot of equal weight, 1 / (how many could be chosen), and what the limits leave out stays uninvested:
giving it to the others would break the limits again.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from activities.decisions.candidate import Candidate, Scored
from qmtl_sdk.contracts.decisions import StrategyDecision, Violation
from qmtl_sdk.contracts.policy import Constraints, Exposure

Correlate = Callable[[Candidate, Candidate], float | None]
"""The correlation of daily returns of two strategies; None where they have too few days in common."""

_EPSILON = 1e-9  # sums of equal slots; an equal budget is kept


def slot_weight(exposure: Exposure, count: int) -> float | None:
    """The fixed weight of a slot where limits need one; None where the chosen share everything."""
    limited = (
        exposure.sector_cap is not None
        or exposure.gross_budget.long is not None
        or exposure.gross_budget.short is not None
    )
    return 1.0 / count if limited and count else None


def constrain(
    rules: Constraints, passed: Sequence[Scored], slot: float | None, correlate: Correlate
) -> tuple[list[Scored], list[StrategyDecision]]:
    """Those that keep every constraint, best first, and those that were left out. `passed` is in order of score."""
    kept: list[Scored] = []
    out: list[StrategyDecision] = []
    book = _Book(rules.exposure, slot or 0.0)
    for item in passed:
        violations = (
            _leverage(rules.exposure, item.candidate)
            or _correlation(rules, item.candidate, kept, correlate)
            or book.violations(item.candidate)
        )
        if violations:
            out.append(item.candidate.left_out(item.score, violations))
        else:
            kept.append(item)
            book.take(item.candidate)
    return kept, out


def _leverage(rules: Exposure, candidate: Candidate) -> list[Violation]:
    if rules.max_leverage is None:
        return []
    rule, found = f"max_leverage = {rules.max_leverage:g}", candidate.metrics.get("leverage")
    if found is None:
        return [_violation("insufficient", rule, "its leverage is missing")]
    return (
        [_violation("leveraged", rule, f"its largest sum of positions is {found:.4g}")]
        if found > rules.max_leverage
        else []
    )


def _correlation(
    rules: Constraints, candidate: Candidate, kept: Sequence[Scored], correlate: Correlate
) -> list[Violation]:
    """The first of the chosen that it clashes with."""
    if rules.correlation is None:
        return []
    limit = rules.correlation.max_pairwise
    rule = f"max_pairwise = {limit:g}"
    for other in kept:
        found = correlate(candidate, other.candidate)
        if found is None:
            return [
                _violation(
                    "insufficient", rule, f"it has too few days in common with {other.candidate.label}"
                )
            ]
        if abs(found) > limit:
            return [
                _violation(
                    "correlated",
                    rule,
                    f"its daily returns have a correlation of {found:.3f} with {other.candidate.label}, which has the higher score",
                )
            ]
    return []


class _Book:
    """What the chosen hold together."""

    def __init__(self, rules: Exposure, slot: float) -> None:
        self._rules, self._slot = rules, slot
        self._gross = {"long": 0.0, "short": 0.0}
        self._sectors: defaultdict[str, float] = defaultdict(float)

    def violations(self, candidate: Candidate) -> list[Violation]:
        return [*self._budget(candidate), *self._sector(candidate)]

    def take(self, candidate: Candidate) -> None:
        for side in self._gross:
            self._gross[side] += self._slot * (candidate.metrics.get(f"gross_{side}") or 0.0)
        for sector in candidate.sectors:
            self._sectors[sector] += self._slot / len(candidate.sectors)

    def _budget(self, candidate: Candidate) -> list[Violation]:
        for side, limit in (
            ("long", self._rules.gross_budget.long),
            ("short", self._rules.gross_budget.short),
        ):
            if limit is None:
                continue
            rule, gross = f"gross_budget.{side} = {limit:g}", candidate.metrics.get(f"gross_{side}")
            if gross is None:
                return [_violation("insufficient", rule, f"its {side} exposure is missing")]
            total = self._gross[side] + self._slot * gross
            if total > limit + _EPSILON:
                return [
                    _violation(
                        "exposed",
                        rule,
                        f"with its {self._slot * gross:.4g} the {side} exposure of the chosen would be {total:.4g}",
                    )
                ]
        return []

    def _sector(self, candidate: Candidate) -> list[Violation]:
        limit = self._rules.sector_cap
        if limit is None:
            return []
        rule = f"sector_cap = {limit:g}"
        if not candidate.sectors:
            return [
                _violation(
                    "insufficient",
                    rule,
                    "the sector of its streams is not known: name it in the preset's sectors",
                )
            ]
        for sector in candidate.sectors:
            total = self._sectors[sector] + self._slot * candidate.sectors.count(sector) / len(
                candidate.sectors
            )
            if total > limit + _EPSILON:
                return [
                    _violation(
                        "concentrated", rule, f"the share of the chosen in {sector} would be {total:.4g}"
                    )
                ]
        return []


def _violation(kind: str, rule: str, detail: str) -> Violation:
    return Violation.model_validate({"step": "constraints", "kind": kind, "rule": rule, "detail": detail})
