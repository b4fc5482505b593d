"""Decides whether a batch result may replace the bar-by-bar one.

1. The function computes short stretches of bars twice: alone, and with the bars that follow. If rows of the
   stretch differ, it *looks ahead*; if a third call differs from the first, it *keeps state*. Both are
   refused.
2. The function computes single bars from their windows. Where a window gives another value than the batch,
   the function *needs more than its period*: it is computed bar by bar, and that is reported.

This is evidence, not proof: about a hundred stretches and bars are compared, half of them where the output
changes. `parity="full"` compares every bar.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from qmtl_sdk.compute.output import Columns
from qmtl_sdk.compute.plan import NodePlan
from qmtl_sdk.data.bars import iso

Verdict = Literal["equal", "looks ahead", "needs more than its period", "keeps state", "bar by bar"]

TRIES = 100
"""Stretches and bars to compare, each.

The random half alone finds a fault at 5 % of the bars in 92 % of cases.
"""

_STRETCH = 4
"""Length of a stretch, in periods: long enough for a rolling window to fill several times."""

_RELATIVE = 1e-9
_ABSOLUTE = 1e-12
"""Tolerances of a comparison: rolling sums differ by rounding from sums over a window."""


@dataclass(frozen=True)
class ParityCheck:
    """The verdict and, where something differs, the bar and both values."""

    node: str
    verdict: Verdict
    bar: str = ""
    detail: str = ""


def check_parity(plan: NodePlan, batch: Columns, tries: int = TRIES, seed: int = 0) -> ParityCheck:
    """Compare `batch` with stretches and windows; see the module's steps.

    Raises QmtlError: as `NodePlan.compute_bar`.
    """
    node = plan.node
    total = len(plan.ts)
    span = min(_STRETCH * node.period, (total - plan.first) // 3)
    if span < 1:
        return ParityCheck(node.label, "bar by bar")
    rng = np.random.default_rng(seed)
    for cut in _bars_to_try(batch, max(plan.origin + span, plan.first), total - span, tries, rng):
        found = _compare_stretch(plan, cut, span)
        if found:
            return found
    if tries >= total:
        picks = list(range(plan.first, total))
    else:
        picks = [plan.first, total - 1, *_bars_to_try(batch, plan.first, total, tries, rng)]
        picks += _first_gap(batch, plan.first)
    for t in picks:
        window = plan.compute_bar(t)
        whole = {name: float(values[t]) for name, values in batch.items()}
        for name in {*window, *whole}:
            mine = window.get(name, np.nan)
            other = whole.get(name, np.nan)
            if not _same(mine, other):
                return ParityCheck(
                    node.label,
                    "needs more than its period",
                    iso(int(plan.ts[t])),
                    f"{name} is {mine:g} from {node.period} bars and {other:g} from all",
                )
    return ParityCheck(node.label, "equal")


def _compare_stretch(plan: NodePlan, cut: int, span: int) -> ParityCheck | None:
    """Compare the `span` bars before `cut`, computed alone and computed with as many bars after them."""
    alone = _try_range(plan, cut - span, cut)
    longer = _try_range(plan, cut - span, cut + span)
    if alone is None or longer is None:
        return None
    for name in {*alone, *longer}:
        missing = np.full(span, np.nan)
        before = alone.get(name, missing)
        after = longer.get(name, np.full(2 * span, np.nan))[:span]
        wrong = np.flatnonzero(~_same(before, after))
        if len(wrong):
            repeated = _try_range(plan, cut - span, cut) or {}
            stable = _same(repeated.get(name, missing), before).all()
            verdict: Verdict = "looks ahead" if stable else "keeps state"
            row = int(wrong[0])
            detail = (
                f"{name} is {before[row]:g} from the bars before {iso(int(plan.ts[cut]))} "
                f"and {after[row]:g} with those after it"
            )
            return ParityCheck(plan.node.label, verdict, iso(int(plan.ts[cut - span + row])), detail)
    return None


def _try_range(plan: NodePlan, lo: int, hi: int) -> Columns | None:
    """Compute a stretch; None where the function can't work on so few bars."""
    try:
        return plan.compute_range(lo, hi)
    except Exception:  # a function may need its full period; then the comparison of windows decides
        return None


def _same(a: Any, b: Any) -> Any:
    return np.isclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True)


def _bars_to_try(batch: Columns, lo: int, hi: int, tries: int, rng: np.random.Generator) -> list[int]:
    """Choose bars: half at random, half where the output changes, since a rare condition shows there."""
    if hi <= lo:
        return []
    changes = np.unique(
        np.concatenate([np.flatnonzero(np.diff(values) != 0) + 1 for values in batch.values()])
    )
    changes = changes[(changes >= lo) & (changes < hi)]
    some: list[int] = []
    if len(changes):
        some = rng.choice(changes, min(tries // 2, len(changes)), replace=False).tolist()
    return [*rng.integers(lo, hi, tries // 2).tolist(), *some]


def _first_gap(batch: Columns, first: int) -> list[int]:
    """Return the first bar without a value after one with a value: its window must end in that bar, too."""
    missing = np.all([np.isnan(values[first:]) for values in batch.values()], axis=0)
    starts = np.flatnonzero(missing[1:] & ~missing[:-1]) + 1
    return [first + int(start) for start in starts[:1]]
