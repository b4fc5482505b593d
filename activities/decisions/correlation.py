"""Correlations of daily returns, from the uploaded returns themselves: evidence, kept by content hash."""

from functools import lru_cache

import numpy as np

from activities.artifacts.store import ArtifactStore
from activities.decisions.candidate import Candidate
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.artifact import decode

MIN_DAYS = 20
"""Fewer days in common say nothing."""

_DAY_NS = 86_400 * NS
Daily = tuple[np.ndarray, np.ndarray]


class Correlations:
    """Pearson's correlation of two strategies' daily returns over the days that both have; 0 where one of them does not move."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._daily = lru_cache(maxsize=2000)(lambda digest: daily(artifacts.get(digest)))

    def __call__(self, one: Candidate, other: Candidate) -> float | None:
        if not one.returns_hash or not other.returns_hash:
            return None
        return correlation(self._daily(one.returns_hash), self._daily(other.returns_hash))


def daily(artifact: bytes) -> Daily:
    """Days since 1970 (UTC) and the compounded return of each."""
    returns = decode(artifact)
    days, starts = np.unique(returns.ts // _DAY_NS, return_index=True)
    return days, np.multiply.reduceat(1.0 + returns.values, starts) - 1.0


def correlation(one: Daily, other: Daily) -> float | None:
    _, mine, theirs = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    if len(mine) < MIN_DAYS:
        return None
    a, b = one[1][mine], other[1][theirs]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
