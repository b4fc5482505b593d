"""Metrics of a returns series: simple returns r of each bar, p periods a year.

Worked: returns +10 %, −50 %, +20 % give the equity 1.10, 0.55, 0.66, and a maximum drawdown of 0.5.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.returns import Returns

_DAY_NS = 86_400 * NS

# The largest absolute value of a metric: far above any market's, and far below where sums overflow.
_MAX_METRIC = 1e15


@dataclass(frozen=True)
class Sample:
    """What a metric is computed from.

    `returns` has at least one bar; `periods` is the number of bars a year. Its arrays must not be changed.
    """

    returns: Returns
    periods: float

    @property
    def values(self) -> np.ndarray:
        """Simple returns, one for each bar."""
        return self.returns.values

    @cached_property
    def drawdown(self) -> np.ndarray:
        """Fall from the running peak after each bar, as a positive fraction."""
        return drawdown(self.values)

    @cached_property
    def deviation(self) -> float | None:
        """Sample deviation of the returns; None for fewer than two."""
        return _deviation(self.values)

    @cached_property
    def changes(self) -> dict[str, np.ndarray]:
        """Absolute change of position at each bar, by instrument; empty for a series without positions."""
        positions = self.returns.positions
        return {name: np.abs(np.diff(held, prepend=0.0)) for name, held in positions.items()}

    @cached_property
    def exposures(self) -> list[np.ndarray]:
        """Weighted position at each bar, for each instrument."""
        weights = self.returns.weights
        return [weights[name] * held for name, held in self.returns.positions.items()]


@dataclass(frozen=True)
class Metric:
    """A metric that a policy may name.

    `description` gives formula and unit in one line. `compute` returns None where the metric is not defined.
    """

    description: str
    compute: Callable[[Sample], float | None]


def measure(returns: Returns, periods: float) -> dict[str, float | None]:
    """Compute every known metric; None where it is not defined.

    Raises QmtlError: E_RETURNS_INVALID where a metric is outside ±1e15; E_EXTENSION where a metric of another
    package fails.
    """
    sample = Sample(returns, periods)
    return {name: _compute(name, sample) for name in METRICS.names()}


def descriptions() -> dict[str, str]:
    """Return the description of every known metric, by name."""
    return {name: METRICS.load(name).description for name in METRICS.names()}


def _compute(name: str, sample: Sample) -> float | None:
    metric: Metric = METRICS.load(name)
    try:
        found = metric.compute(sample)
        value = None if found is None or np.isnan(found) else float(found)
    except Exception as error:  # a package of others may fail in any way
        raise QmtlError(
            "E_EXTENSION", f"the metric {name!r} failed: {error!r}"[:500], "mend or uninstall its package"
        ) from error
    if value is not None and abs(value) > _MAX_METRIC:
        raise QmtlError(
            "E_RETURNS_INVALID",
            f"the metric {name} is {value:g}; {_MAX_METRIC:g} is the largest allowed",
            "check the strategy's returns and positions",
        )
    return value


def equity(r: np.ndarray) -> np.ndarray:
    """Compound returns from 1; the equity after each bar."""
    return np.cumprod(1.0 + r)


def drawdown(r: np.ndarray) -> np.ndarray:
    """Fall from the running peak after each bar, as a positive fraction. The peak starts at 1."""
    curve = equity(r)
    return 1.0 - curve / np.maximum(np.maximum.accumulate(curve), 1.0)


def _deviation(r: np.ndarray) -> float | None:
    """Sample deviation; exactly 0 for a constant series, without rounding errors."""
    if len(r) < 2:
        return None
    return 0.0 if np.ptp(r) == 0 else float(r.std(ddof=1))


def _sharpe(sample: Sample) -> float | None:
    if not sample.deviation:
        return None
    return float(sample.values.mean() / sample.deviation * np.sqrt(sample.periods))


def _linearity(sample: Sample) -> float | None:
    if len(sample.values) < 2:
        return None
    curve = np.log(equity(sample.values))
    x = np.arange(len(curve)) - (len(curve) - 1) / 2
    y = curve - curve.mean()
    slope = float(x @ y / (x @ x))
    total = float(y @ y)
    return 0.0 if slope <= 0 or total <= 0 else float(slope * slope * (x @ x) / total)


def _win_rate(sample: Sample) -> float | None:
    moved = sample.values[sample.values != 0]
    return float((moved > 0).mean()) if len(moved) else None


def _turnover(sample: Sample) -> float | None:
    if not sample.changes:
        return None
    years = len(sample.values) / sample.periods
    weights = sample.returns.weights
    return float(sum(abs(weights[name]) * change.sum() for name, change in sample.changes.items()) / years)


def _trades(sample: Sample) -> float | None:
    if not sample.changes:
        return None
    return float(sum(np.count_nonzero(change) for change in sample.changes.values()))


def _annual_volatility(sample: Sample) -> float | None:
    return None if sample.deviation is None else float(sample.deviation * np.sqrt(sample.periods))


def _gross_long(sample: Sample) -> float | None:
    if not sample.exposures:
        return None
    return float(sum(np.maximum(held, 0.0) for held in sample.exposures).mean())


def _gross_short(sample: Sample) -> float | None:
    if not sample.exposures:
        return None
    return float(sum(np.maximum(-held, 0.0) for held in sample.exposures).mean())


def _leverage(sample: Sample) -> float | None:
    if not sample.exposures:
        return None
    return float(sum(np.abs(held) for held in sample.exposures).max())


sharpe = Metric("annualised Sharpe ratio: mean(r) / std(r, ddof 1) · √(periods a year)", _sharpe)

max_drawdown = Metric(
    "largest fall of compounded equity from its running peak, as a positive fraction",
    lambda sample: float(sample.drawdown.max()),
)

linearity = Metric(
    "R² of a straight line through cumulative log equity; 0 when it falls",
    _linearity,
)

win_rate = Metric("share of the bars with a non-zero return that gained", _win_rate)

ulcer = Metric(
    "ulcer index: root mean square of the drawdown, as a fraction",
    lambda sample: float(np.sqrt(np.mean(sample.drawdown**2))),
)

turnover = Metric("weighted absolute change of position a year", _turnover)

trades = Metric("number of changes of position, over all instruments", _trades)

sample_days = Metric(
    "number of UTC days that have a return",
    lambda sample: float(len(np.unique(sample.returns.ts // _DAY_NS))),
)

total_return = Metric(
    "compounded return over the sample, as a fraction",
    lambda sample: float(equity(sample.values)[-1] - 1.0),
)

annual_return = Metric(
    "mean return of a bar · periods a year, as a fraction",
    lambda sample: float(sample.values.mean() * sample.periods),
)

annual_volatility = Metric("std(r, ddof 1) · √(periods a year), as a fraction", _annual_volatility)

gross_long = Metric("mean over the sample of the weighted long positions, as a fraction", _gross_long)

gross_short = Metric(
    "mean over the sample of the weighted short positions, as a positive fraction", _gross_short
)

leverage = Metric("largest sum of the weighted absolute positions, as a fraction", _leverage)
