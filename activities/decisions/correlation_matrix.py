"""The correlations of every two of many return series, each over the days that both have.

Sums over the common days are matrix products of the returns and of the masks of the days, computed for some
days at a time, so that memory grows with the square of the series and not with the days:

    corr = (Sxy - Sx·Sy / n) / √((Sxx - Sx² / n) · (Syy - Sy² / n))
"""

from collections.abc import Callable, Sequence

import numpy as np

# Days of one step.
_DAYS = 1024

# Decimal places: rounding errors of sums in another order must not decide.
_PLACES = 12

# A variance below this share of the sum of squares is rounding error.
_NOISE = 1e-9

Daily = tuple[np.ndarray, np.ndarray]
"""Days since 1970 (UTC), in ascending order, and the compounded return of each."""


class CorrelationMatrix:
    """Pearson's correlation of every two series; NaN where they share fewer than `min_days` days.

    `exact` computes the correlation of two series whose returns hardly vary on their common days.
    """

    def __init__(
        self, series: Sequence[Daily], min_days: int, exact: Callable[[Daily, Daily], float | None]
    ) -> None:
        self._series = series
        self._exact = exact
        count, one, squares, products = _sums(series)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = squares - one**2 / count
            found = (products - one * one.T / count) / np.sqrt(variance * variance.T)
            noise = ~(variance > _NOISE * squares)
        found = np.round(np.clip(found, -1.0, 1.0), _PLACES)
        constant = np.array([np.ptp(values) == 0 if len(values) else True for _, values in series], bool)
        found[constant, :] = found[:, constant] = 0.0
        self._unsure = (noise | noise.T) & ~constant[:, None] & ~constant[None, :] & (count >= min_days)
        found[count < min_days] = np.nan
        self._found = found

    def __call__(self, one: int, other: int) -> float | None:
        """Return the correlation of two series by their places; None where they share too few days."""
        if self._unsure[one, other]:
            return self._exact(self._series[one], self._series[other])
        found = float(self._found[one, other])
        return None if np.isnan(found) else found

    def first_clash(self, one: int, others: np.ndarray, limit: float) -> tuple[int, float | None] | None:
        """Return which of `others` (places) is the first that clashes with `one`, and their correlation.

        Two series clash if their absolute correlation exceeds the limit, or if they share too few days. The
        answer is that of a call for each of them in turn, and takes one step for all of which the matrix is
        sure. None if nothing clashes.
        """
        found, unsure = self._found[one].take(others), self._unsure[one].take(others)
        for at in np.flatnonzero(unsure | ~(np.abs(found) <= limit)):  # NaN is not below the limit either
            correlation = self(one, int(others[at]))
            if correlation is None or abs(correlation) > limit:
                return int(at), correlation
        return None


def _sums(series: Sequence[Daily]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sum over the common days of each two series: their number, x, x² and x·y (x: of the row)."""
    size = len(series)
    count, one, squares, products = (np.zeros((size, size)) for _ in range(4))
    means = [values.mean() if len(values) else 0.0 for _, values in series]
    days = np.unique(np.concatenate([found for found, _ in series])) if size else np.array([], "int64")
    for start in range(0, len(days), _DAYS):
        part = days[start : start + _DAYS]
        bounds = [np.searchsorted(found, (part[0], part[-1] + 1)) for found, _ in series]
        rows = [row for row, (first, last) in enumerate(bounds) if last > first]
        values, mask = np.zeros((len(rows), len(part))), np.zeros((len(rows), len(part)))
        for place, row in enumerate(rows):
            first, last = bounds[row]
            columns = np.searchsorted(part, series[row][0][first:last])
            values[place, columns] = series[row][1][first:last] - means[row]
            mask[place, columns] = 1.0
        here = np.ix_(rows, rows)
        count[here] += mask @ mask.T
        one[here] += values @ mask.T
        squares[here] += values**2 @ mask.T
        products[here] += values @ values.T
    return count, one, squares, products
