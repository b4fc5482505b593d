"""Clashes by the plain rule: a candidate is compared with each chosen one in turn."""

from collections.abc import Callable

from activities.decisions.candidate import Candidate
from activities.decisions.steps import Clash, ClashFinders

Correlate = Callable[[Candidate, Candidate], float | None]
"""The correlation of two candidates; None if they share too few days."""


class PairByPair:
    """What `activities.decisions.correlation.MatrixClashes` must find."""

    def __init__(self, correlate: Correlate, limit: float) -> None:
        self._correlate = correlate
        self._limit = limit
        self._chosen: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        self._chosen.append(candidate)

    def clash(self, candidate: Candidate) -> Clash | None:
        for other in self._chosen:
            found = self._correlate(candidate, other)
            if found is None or abs(found) > self._limit:
                return Clash(other, found)
        return None


def pair_by_pair(correlate: Correlate) -> ClashFinders:
    """Compare candidates by this function of two."""
    return lambda limit: PairByPair(correlate, limit)


UNCORRELATED = pair_by_pair(lambda one, other: 0.0)
