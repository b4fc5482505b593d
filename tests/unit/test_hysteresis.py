"""Hysteresis against a small model of its rules: it counts evidence, and never waits for facts."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.judgment import judge
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import policy_from
from tests.support.pair_by_pair import UNCORRELATED

START = datetime(2024, 1, 1, tzinfo=UTC)
MAX_LAG = timedelta(days=1)
DWELL = timedelta(hours=3)

Kind = Literal["good", "bad", "rejected"]


def rules(promote_after: int, demote_after: int, dwell: bool) -> Policy:
    return policy_from(
        {
            "data_currency": {"max_lag": "1d"},
            "selection": {
                "gates": {"and": ["sharpe >= 0"]},
                "hysteresis": {
                    "promote_after": promote_after,
                    "demote_after": demote_after,
                    **({"min_dwell": "3h"} if dwell else {}),
                },
            },
        }
    )


@dataclass(frozen=True)
class Evidence:
    """A piece of evidence: `number` in the order of arrival, and the newest close of its data."""

    number: int
    kind: Kind
    until: datetime


@dataclass
class Author:
    """What happens to one strategy, as the store would hand it to a judgment."""

    pieces: list[Evidence] = field(default_factory=list)
    newest: Evidence | None = None
    newest_bar: datetime | None = None
    now: datetime = START

    def does(self, action: "Action") -> None:
        self.now += timedelta(hours=action.hours)
        if action.what == "submit":
            self.newest = Evidence(len(self.pieces) + 1, action.kind, self.now - timedelta(hours=1))
            self.pieces.append(self.newest)
        elif action.what == "resubmit" and self.pieces:
            self.newest = self.pieces[action.which % len(self.pieces)]
        elif action.what == "bar":
            self.newest_bar = self.now

    @property
    def candidate(self) -> Candidate:
        assert self.newest is not None
        return Candidate(
            strategy_id="a",
            name="a",
            bound=1,
            first_seq=self.newest.number,
            metrics={"sharpe": {"good": 1.0, "bad": -1.0, "rejected": None}[self.newest.kind]},
            error_code="E_LOOKAHEAD" if self.newest.kind == "rejected" else "",
            data_first=START - timedelta(days=400),
            data_last=self.newest.until,
            newest_bar=self.newest_bar,
        )

    @property
    def until(self) -> datetime:
        assert self.newest is not None
        return max(self.newest.until, self.newest_bar or self.newest.until)


@dataclass(frozen=True)
class Action:
    """Something that happens `hours` after the last one; then the world is judged."""

    what: Literal["submit", "resubmit", "bar", "renew"]
    kind: Kind = "good"
    which: int = 0
    hours: int = 0


@dataclass
class Model:
    """The rules in the plainest form: a list of counted pieces, each with its newest result."""

    promote_after: int
    demote_after: int
    dwell: timedelta
    counted: list[list[Any]] = field(default_factory=list)  # number, until, whether it passed
    active: bool = False
    since: datetime | None = None

    def judge(self, author: Author) -> None:
        newest, until = author.newest, author.until
        assert newest is not None
        self.since = self.since or author.now
        fact = newest.kind == "rejected" or author.now - until > MAX_LAG
        passes = newest.kind == "good" and not fact
        numbers = max((item[0] for item in self.counted), default=0)
        bars = max((item[1] for item in self.counted), default=None)
        if newest.number > numbers or bars is None or until > bars:
            self.counted.append([max(newest.number, numbers), until, passes])
        elif newest.number == numbers or not passes:
            self.counted[-1][2] = passes
        if passes == self.active:
            return
        row = 0
        while row < len(self.counted) and self.counted[-1 - row][2] == passes:
            row += 1
        enough = row >= (self.promote_after if passes else self.demote_after)
        if (fact and not passes) or (enough and author.now - self.since >= self.dwell):
            self.active, self.since = passes, author.now


actions = st.builds(
    Action,
    what=st.sampled_from(["submit", "submit", "resubmit", "bar", "renew", "renew"]),
    kind=st.sampled_from(["good", "good", "bad", "rejected"]),
    which=st.integers(0, 9),
    hours=st.sampled_from([0, 0, 1, 2, 5, 30]),
)
HISTORY = st.lists(actions, max_size=25)


def judged(policy: Policy, author: Author, state: HysteresisState | None) -> HysteresisState:
    states = {"a": state} if state is not None else {}
    found = judge(policy, [author.candidate], author.now, states, UNCORRELATED)
    (decision,) = found.strategies
    assert decision.active == found.states["a"].active
    return found.states["a"]


@given(HISTORY, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_any_history_gives_the_state_of_the_model(
    history: list[Action], promote_after: int, demote_after: int, dwell: bool
) -> None:
    policy, author = rules(promote_after, demote_after, dwell), Author()
    model = Model(promote_after, demote_after, DWELL if dwell else timedelta())
    state: HysteresisState | None = None
    for action in [Action("submit"), *history]:
        author.does(action)
        state = judged(policy, author, state)
        model.judge(author)
        assert (state.active, state.since) == (model.active, model.since), action


@given(
    st.lists(st.sampled_from(["good", "bad", "rejected"]), min_size=1, max_size=12),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_no_number_of_renewals_and_repeated_requests_changes_a_decision(
    kinds: list[Kind], repeated: list[int], promote_after: int, demote_after: int
) -> None:
    policy = rules(promote_after, demote_after, dwell=False)

    def decided(repeats: list[int]) -> list[HysteresisState]:
        author, state, found = Author(), None, []
        for kind, times in zip(kinds, repeats, strict=False):
            author.does(Action("submit", kind, hours=1))
            for _ in range(1 + times):
                state = judged(policy, author, state)
                author.does(Action("renew"))
            assert state is not None
            found.append(state)
        return found

    assert decided(repeated) == decided([0] * 12)


@given(HISTORY, st.integers(1, 9), st.booleans())
def test_a_strategy_with_stale_data_is_out_after_the_next_judgment_whatever_came_before(
    history: list[Action], demote_after: int, dwell: bool
) -> None:
    policy, author = rules(1, demote_after, dwell), Author()
    state: HysteresisState | None = None
    for action in [Action("submit"), *history]:
        author.does(action)
        state = judged(policy, author, state)
    author.does(Action("renew", hours=100))
    assert not judged(policy, author, state).active


@pytest.mark.parametrize("kind", ["bad", "rejected"])
def test_only_a_fact_puts_a_strategy_out_before_it_has_failed_often_enough(kind: Kind) -> None:
    policy, author = rules(1, 5, dwell=True), Author()
    state: HysteresisState | None = None
    for action in (Action("submit"), Action("renew", hours=4)):  # it passes, and has dwelt long enough
        author.does(action)
        state = judged(policy, author, state)
    assert state is not None
    assert state.active
    author.does(Action("submit", kind))
    assert judged(policy, author, state).active == (kind == "bad")


def test_a_bar_that_a_session_reports_counts_whole() -> None:
    """A session that reported one bar at many times advanced its data as often, and passed each time."""
    close = datetime(2024, 1, 2, tzinfo=UTC)
    found = {
        Candidate(
            strategy_id="s", name="s", bound=1, interval_s=3600, newest_bar=close + timedelta(minutes=minutes)
        ).data_until
        for minutes in (0, 1, 17, 59)
    }
    assert found == {close}


def test_a_newer_result_of_the_same_evidence_replaces_the_earlier_one() -> None:
    """Under another policy, or beside a better rival, the same evidence fails: it counts as one failure."""
    author = Author()
    author.does(Action("submit", "bad"))
    lax = rules(1, 1, dwell=False).model_copy(update={"selection": policy_from({}).selection})
    state = judged(lax, author, None)
    assert (state.active, state.passes) == (True, 1)
    state = judged(rules(1, 2, dwell=False), author, state)
    assert (state.active, state.passes, state.failures) == (True, 0, 1)
    state = judged(rules(1, 2, dwell=False), author, state)
    assert (state.active, state.failures) == (True, 1), "judged again, it is the same failure"
    assert not judged(rules(1, 1, dwell=False), author, state).active
