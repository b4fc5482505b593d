"""Correlations of strategies' daily returns, computed from the returns that were uploaded as evidence."""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, lru_cache

import numpy as np

from activities.artifacts.store import ArtifactStore
from activities.decisions.candidate import Candidate
from activities.decisions.correlation_matrix import CorrelationMatrix, Daily
from activities.decisions.steps import Clash, ClashFinders
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.artifact import decode

# Days that two strategies must have in common: a correlation of fewer means nothing.
MIN_DAYS = 20

# Errors of an artifact that stays unreadable, however often it is read.
_LOST = ("E_ARTIFACT_UNKNOWN", "E_ARTIFACT_HASH", "E_ARTIFACT_DAMAGED", "E_RETURNS_INVALID")

# Nanoseconds of a day.
_DAY_NS = 86_400 * NS

# The series of a candidate without returns.
_NO_RETURNS: Daily = (np.array([], "int64"), np.array([]))

# Sets of artifacts whose correlations are cached: some 9 MB for a thousand.
_MATRICES = 4

# Strategies whose daily returns are cached.
_CACHED = 2000


class Correlations:
    """Pearson correlations of candidates' daily returns, which are cached by content hash."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._daily = lru_cache(maxsize=_CACHED)(lambda digest: daily(artifacts.get(digest)))
        self._matrix = lru_cache(maxsize=_MATRICES)(self._computed)

    def among(self, candidates: Iterable[Candidate]) -> ClashFinders:
        """Compare the daily returns of these candidates.

        The first comparison computes the correlations of all, which takes a hundredth of computing them one
        by one; another judgment of the same artifacts finds them. One without returns has no day in common
        with others.
        """
        hashes = {item.returns_hash for item in candidates if item.returns_hash and not item.error_code}
        places = {digest: place for place, digest in enumerate(sorted(hashes))}
        return lambda limit: MatrixClashes(places, lambda: self._matrix(tuple(places)), limit)

    def _computed(self, hashes: tuple[str, ...]) -> CorrelationMatrix:
        series = [*(self._daily(digest) for digest in hashes), _NO_RETURNS]
        return CorrelationMatrix(series, MIN_DAYS, correlation)

    def checked(self, policy: Policy, candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
        """Return the candidates; where the policy needs returns that are lost or damaged, with that error."""
        if policy.selection.constraints.correlation is None:
            return tuple(candidates)
        return tuple(self._checked(candidate) for candidate in candidates)

    def _checked(self, candidate: Candidate) -> Candidate:
        try:
            if candidate.returns_hash:
                self._daily(candidate.returns_hash)
        except QmtlError as error:
            if error.code not in _LOST:
                raise
            lost = {"metrics": {}, "error_code": error.code, "error": f"its returns: {error.message}"}
            return candidate.model_copy(update=lost)
        return candidate


class MatrixClashes:
    """Finds clashes among chosen candidates in a matrix of correlations: `steps.ClashFinder`.

    `places` are the rows of the matrix by content hash; the last row is that of candidates without returns.
    """

    def __init__(
        self, places: Mapping[str, int], matrix: Callable[[], CorrelationMatrix], limit: float
    ) -> None:
        self._places = places
        self._find_matrix = matrix
        self._limit = limit
        self._chosen: list[Candidate] = []
        self._rows = np.array([], np.intp)

    def add(self, candidate: Candidate) -> None:
        """Add a chosen candidate."""
        self._chosen.append(candidate)
        self._rows = np.append(self._rows, self._row(candidate))

    def clash(self, candidate: Candidate) -> Clash | None:
        """Return the clash with the candidate that was chosen first, of those that this one clashes with."""
        if not self._chosen:
            return None
        found = self._matrix.first_clash(self._row(candidate), self._rows, self._limit)
        return Clash(self._chosen[found[0]], found[1]) if found else None

    @cached_property
    def _matrix(self) -> CorrelationMatrix:
        return self._find_matrix()

    def _row(self, candidate: Candidate) -> int:
        return self._places.get(candidate.returns_hash, len(self._places))


def daily(artifact: bytes) -> Daily:
    """Compound a returns artifact by UTC day."""
    returns = decode(artifact)
    days, starts = np.unique(returns.ts // _DAY_NS, return_index=True)
    return days, np.multiply.reduceat(1.0 + returns.values, starts) - 1.0


def correlation(one: Daily, other: Daily) -> float | None:
    """Return Pearson's correlation over the days that both have.

    It is 0 if one of them has constant returns, and None if they share fewer than `MIN_DAYS` days.
    """
    _, in_one, in_other = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    if len(in_one) < MIN_DAYS:
        return None
    a = one[1][in_one]
    b = other[1][in_other]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))
