"""What the steps of a judgment share: their inputs, and the shortlist that each step takes and returns.

A step is a pure function. It never removes an entry from the shortlist: it adds violations to the entries
that it leaves out, and the steps after it pass over those.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from activities.decisions.candidate import Candidate, HysteresisState
from qmtl_sdk.contracts.decisions import JudgmentStep, Violation
from qmtl_sdk.contracts.policy import Policy


@dataclass(frozen=True)
class Clash:
    """A chosen candidate whose daily returns are correlated with another's over the limit.

    `correlation` is None where both have too few days in common.
    """

    other: Candidate
    correlation: float | None


class ClashFinder(Protocol):
    """The candidates chosen so far, and which of them another candidate clashes with."""

    def add(self, candidate: Candidate) -> None:
        """Add a chosen candidate."""

    def clash(self, candidate: Candidate) -> Clash | None:
        """Return the clash with the candidate that was chosen first, of those that this one clashes with."""


ClashFinders = Callable[[float], ClashFinder]
"""Make a finder, without chosen candidates, for a limit of absolute correlation."""


@dataclass(frozen=True)
class JudgmentInputs:
    """What every step reads.

    `now` is the world's time. `states` are the hysteresis states after the last judgment, by strategy_id.
    `clash_finder` compares daily returns.
    """

    policy: Policy
    now: datetime
    states: Mapping[str, HysteresisState]
    clash_finder: ClashFinders

    def was_active(self, candidate: Candidate) -> bool:
        """Return whether the last judgment left the strategy active."""
        state = self.states.get(candidate.strategy_id)
        return state is not None and state.active


@dataclass(frozen=True)
class Entry:
    """A candidate with the results of the steps so far. It passes while it has no violations.

    `active` and `state` are set by hysteresis, which may leave an entry active in spite of its violations.
    """

    candidate: Candidate
    violations: tuple[Violation, ...] = ()
    score: float | None = None
    rank: int | None = None
    active: bool = False
    state: HysteresisState | None = None

    @property
    def passes(self) -> bool:
        return not self.violations

    def violating(self, *violations: Violation) -> "Entry":
        """Return the entry with more violations."""
        return replace(self, violations=(*self.violations, *violations))


@dataclass(frozen=True)
class Shortlist:
    """All candidates of a judgment. From the score on, the passing ones are in order of score, best first.

    `slot` is the fixed weight of each slot, where the constraints need one.
    """

    entries: tuple[Entry, ...]
    slot: float | None = None

    def each(self, step: Callable[[Entry], Entry]) -> "Shortlist":
        """Return the shortlist with `step` applied to every entry."""
        return replace(self, entries=tuple(step(entry) for entry in self.entries))


@dataclass(frozen=True)
class Step:
    """A step of the judgment. `label` is its name in explanations.

    A step that `checks_all` also checks the candidates which earlier steps left out, except those whose
    evidence was rejected.
    """

    name: JudgmentStep
    label: str
    run: Callable[[JudgmentInputs, Shortlist], Shortlist]
    checks_all: bool = False
