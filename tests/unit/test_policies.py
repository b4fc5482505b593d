"""The judgment: what evidence and policy decide, with a case for each edge of every step."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.judgment import JudgmentResult, judge
from activities.decisions.steps import ClashFinders
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import policy_from
from tests.support.pair_by_pair import pair_by_pair

NOW = datetime(2024, 1, 10, tzinfo=UTC)
OPEN: dict[str, Any] = {"gates": {"and": ["sharpe >= 0"]}, "score": "sharpe"}


def some(name: str, sharpe: float | None = 1.0, **fields: Any) -> Candidate:
    """Return a candidate that passes by default. Its name gives the order of binding."""
    metrics = {
        "sharpe": sharpe,
        "max_drawdown": 0.1,
        "annual_return": 0.2,
        "gross_long": 0.5,
        "gross_short": 0.0,
        "leverage": 1.0,
    } | fields.pop("metrics", {})
    base: dict[str, Any] = {
        "strategy_id": name,
        "name": name,
        "bound": ord(name[0]),
        "metrics": metrics,
        "sectors": ("tech",),
    }
    return Candidate(
        **{**base, "data_first": NOW - timedelta(days=400), "data_last": NOW - timedelta(days=1), **fields}
    )


def short(name: str, sharpe: float = 1.0, gross: float = 0.5) -> Candidate:
    return some(name, sharpe, metrics={"gross_long": 0.0, "gross_short": gross})


def state(active: bool, hours: float = 1000.0, passes: int = 0, failures: int = 0) -> HysteresisState:
    return HysteresisState(
        active=active, since=NOW - timedelta(hours=hours), passes=passes, failures=failures
    )


@dataclass(frozen=True)
class Case:
    """A policy, candidates, and the expected decision.

    `active`: the active strategies, by rank. `left`: the step and kind of the others' first violation.
    `weights`: of the active, where they are not equal.
    """

    name: str
    policy: dict[str, Any]
    candidates: list[Candidate]
    active: list[str]
    left: dict[str, tuple[str, str]] = field(default_factory=dict)
    figure: str = ""
    states: dict[str, HysteresisState] = field(default_factory=dict)
    correlations: dict[str, float | None] = field(default_factory=dict)
    weights: list[float] | None = None


def correlated(pairs: Mapping[str, float | None]) -> ClashFinders:
    return pair_by_pair(
        lambda one, other: pairs.get(one.name + other.name, pairs.get(other.name + one.name, 0.0))
    )


def sel(**keys: Any) -> dict[str, Any]:
    return {"selection": {**OPEN, **keys}}


LAG = {"data_currency": {"max_lag": "1d"}}
HISTORY = {"data_currency": {"min_history": "399d"}}
CORR = sel(constraints={"correlation": {"max_pairwise": 0.8}})
TWICE = sel(hysteresis={"promote_after": 2, "demote_after": 2})
DWELL = sel(hysteresis={"min_dwell": "3h"})
BANDS = sel(hysteresis={"bands": {"metric": "sharpe", "enter": 1.0, "exit": 0.5}})
CASES = [
    Case("an empty world has an empty decision", sel(), [], []),
    Case("one that passes is active and has the whole world", sel(), [some("a")], ["a"], weights=[1.0]),
    Case("two share the world", sel(), [some("a", 2.0), some("b", 1.0)], ["a", "b"], weights=[0.5, 0.5]),
    # evidence and data currency
    Case(
        "rejected evidence is left out first",
        LAG,
        [some("a", error_code="E_LOOKAHEAD", error="looks ahead")],
        [],
        {"a": ("evidence", "rejected")},
        "looks ahead",
    ),
    Case("a lag equal to the limit passes", {**LAG, **sel()}, [some("a")], ["a"]),
    Case(
        "a lag a second longer is stale",
        {**LAG, **sel()},
        [some("a", data_last=NOW - timedelta(days=1, seconds=1))],
        [],
        {"a": ("data_currency", "stale")},
    ),
    Case(
        "an unknown lag is insufficient",
        {**LAG, **sel()},
        [some("a", data_last=None)],
        [],
        {"a": ("data_currency", "insufficient")},
    ),
    Case("a history equal to the minimum passes", {**HISTORY, **sel()}, [some("a")], ["a"]),
    Case(
        "a shorter history is left out",
        {**HISTORY, **sel()},
        [some("a", data_first=NOW - timedelta(days=399, hours=23))],
        [],
        {"a": ("data_currency", "short_history")},
    ),
    # gates
    Case(
        "a gate equal to its threshold passes", sel(gates={"and": ["sharpe >= 1"]}), [some("a", 1.0)], ["a"]
    ),
    Case(
        "a strict gate equal to its threshold fails",
        sel(gates={"and": ["sharpe > 1"]}),
        [some("a", 1.0)],
        [],
        {"a": ("gates", "failed")},
        "sharpe is 1",
    ),
    Case(
        "a drawdown equal to its limit passes",
        sel(gates={"and": ["max_drawdown <= 0.1"]}),
        [some("a")],
        ["a"],
    ),
    Case(
        "a missing metric is insufficient, not zero",
        sel(gates={"and": ["sharpe <= 5"]}),
        [some("a", None)],
        [],
        {"a": ("gates", "insufficient")},
        "missing",
    ),
    Case(
        "one of several gates fails",
        sel(gates={"and": ["sharpe >= 0.5", "max_drawdown <= 0.05"]}),
        [some("a")],
        [],
        {"a": ("gates", "failed")},
        "max_drawdown is 0.1",
    ),
    Case(
        "one of several alternatives is enough",
        sel(gates={"or": ["sharpe >= 5", "max_drawdown <= 0.2"]}),
        [some("a")],
        ["a"],
    ),
    Case(
        "groups of gates may be nested",
        sel(gates={"and": ["sharpe >= 0", {"or": ["sharpe >= 5", "leverage <= 1"]}]}),
        [some("a")],
        ["a"],
    ),
    Case(
        "a world without gates selects every strategy", {"selection": {"score": "sharpe"}}, [some("a")], ["a"]
    ),
    # score
    Case(
        "a missing score is insufficient",
        {"selection": {"score": "sharpe"}},
        [some("a", None)],
        [],
        {"a": ("score", "insufficient")},
    ),
    Case(
        "a negative score ranks and passes",
        {"selection": {"score": "sharpe"}},
        [some("a", -1.0), some("b", -2.0)],
        ["a", "b"],
    ),
    Case(
        "ties in score go to the older binding",
        sel(topk={"total": 1}),
        [some("b"), some("a")],
        ["a"],
        {"b": ("topk", "outranked")},
    ),
    Case(
        "ties of score and age go to the smaller id",
        sel(topk={"total": 1}),
        [some("y", bound=1), some("x", bound=1)],
        ["x"],
        {"y": ("topk", "outranked")},
    ),
    # constraints
    Case(
        "a correlation equal to the limit passes",
        CORR,
        [some("a", 2.0), some("b")],
        ["a", "b"],
        correlations={"ab": 0.8},
    ),
    Case(
        "a higher one leaves the lower score out",
        CORR,
        [some("a"), some("b", 2.0)],
        ["b"],
        {"a": ("constraints", "correlated")},
        "with b",
        correlations={"ab": 0.81},
    ),
    Case(
        "a negative correlation counts as well",
        CORR,
        [some("a", 2.0), some("b")],
        ["a"],
        {"b": ("constraints", "correlated")},
        "-0.900",
        correlations={"ab": -0.9},
    ),
    Case(
        "too few days in common are insufficient",
        CORR,
        [some("a", 2.0), some("b")],
        ["a"],
        {"b": ("constraints", "insufficient")},
        correlations={"ab": None},
    ),
    Case(
        "when all are correlated the best remains",
        CORR,
        [some("a", 3.0), some("b", 2.0), some("c")],
        ["a"],
        {"b": ("constraints", "correlated"), "c": ("constraints", "correlated")},
        correlations={"ab": 0.9, "ac": 0.9, "bc": 0.9},
    ),
    Case(
        "one that clashes only with one left out stays",
        CORR,
        [some("a", 3.0), some("b", 2.0), some("c")],
        ["a", "c"],
        {"b": ("constraints", "correlated")},
        correlations={"ab": 0.9, "bc": 0.9},
    ),
    Case(
        "a slot that correlation frees goes to the next",
        {"selection": {**CORR["selection"], "topk": {"total": 2}}},
        [some("a", 3.0), some("b", 2.0), some("c")],
        ["a", "c"],
        {"b": ("constraints", "correlated")},
        correlations={"ab": 0.9},
    ),
    Case(
        "a leverage equal to the limit passes",
        sel(constraints={"exposure": {"max_leverage": 1.0}}),
        [some("a")],
        ["a"],
    ),
    Case(
        "a higher leverage is left out",
        sel(constraints={"exposure": {"max_leverage": 0.9}}),
        [some("a")],
        [],
        {"a": ("constraints", "leveraged")},
        "is 1",
    ),
    Case(
        "a missing leverage is insufficient",
        sel(constraints={"exposure": {"max_leverage": 3.0}}),
        [some("a", metrics={"leverage": None})],
        [],
        {"a": ("constraints", "insufficient")},
    ),
    Case(
        "an exposure equal to the budget passes",
        sel(constraints={"exposure": {"gross_budget": {"long": 0.5}}}),
        [some("a", 2.0), some("b")],
        ["a", "b"],
        weights=[0.5, 0.5],
    ),
    Case(
        "the one that would exceed the budget is left out, and its share stays uninvested",
        sel(constraints={"exposure": {"gross_budget": {"long": 0.3}}}),
        [some("a", 2.0), some("b")],
        ["a"],
        {"b": ("constraints", "exposed")},
        "0.5",
        weights=[0.5],
    ),
    Case(
        "budgets are by side",
        sel(constraints={"exposure": {"gross_budget": {"long": 0.25, "short": 0.25}}}),
        [some("a", 2.0), short("b")],
        ["a", "b"],
    ),
    Case(
        "a short budget",
        sel(constraints={"exposure": {"gross_budget": {"short": 0.2}}}),
        [short("a", 2.0)],
        [],
        {"a": ("constraints", "exposed")},
    ),
    Case(
        "a sector equal to its cap passes",
        sel(constraints={"exposure": {"sector_cap": 1.0}}),
        [some("a", 2.0), some("b")],
        ["a", "b"],
    ),
    Case(
        "a sector above its cap leaves the lower score out",
        sel(constraints={"exposure": {"sector_cap": 0.5}}),
        [some("a", 2.0), some("b"), some("c", 0.5, sectors=("oil",))],
        ["a", "c"],
        {"b": ("constraints", "concentrated")},
        "tech",
    ),
    Case(
        "an unknown sector is insufficient",
        sel(constraints={"exposure": {"sector_cap": 0.5}}),
        [some("a", sectors=())],
        [],
        {"a": ("constraints", "insufficient")},
    ),
    # top-k
    Case(
        "top-k takes the best",
        sel(topk={"total": 2}),
        [some("a", 1.0), some("b", 3.0), some("c", 2.0)],
        ["b", "c"],
        {"a": ("topk", "outranked")},
        "rank 3",
    ),
    Case(
        "top-k by side",
        sel(topk={"total": 3, "by_side": {"long": 1}}),
        [some("a", 3.0), some("b", 2.0), short("c")],
        ["a", "c"],
        {"b": ("topk", "outranked")},
        "its side",
    ),
    Case(
        "a side may be closed",
        sel(topk={"total": 3, "by_side": {"short": 0}}),
        [some("a"), short("b", 2.0)],
        ["a"],
        {"b": ("topk", "outranked")},
    ),
    Case("more slots than strategies", sel(topk={"total": 9}), [some("a")], ["a"], weights=[1.0]),
    # hysteresis
    Case("a first pass of two waits", TWICE, [some("a")], [], {"a": ("hysteresis", "waiting")}, "1 of 2"),
    Case("the second pass in a row enters", TWICE, [some("a")], ["a"], states={"a": state(False, passes=1)}),
    Case(
        "a failure between passes starts the count again",
        TWICE,
        [some("a")],
        [],
        {"a": ("hysteresis", "waiting")},
        states={"a": state(False, failures=1)},
    ),
    Case("a first failure of two is held", TWICE, [some("a", -1.0)], ["a"], states={"a": state(True)}),
    Case(
        "the second failure in a row leaves",
        TWICE,
        [some("a", -1.0)],
        [],
        {"a": ("gates", "failed")},
        states={"a": state(True, failures=1)},
    ),
    Case(
        "rejected evidence leaves at once",
        TWICE,
        [some("a", error_code="E_X", error="x")],
        [],
        {"a": ("evidence", "rejected")},
        states={"a": state(True)},
    ),
    Case(
        "a dwell equal to the minimum is enough",
        DWELL,
        [some("a")],
        ["a"],
        states={"a": state(False, hours=3)},
    ),
    Case(
        "a shorter dwell waits",
        DWELL,
        [some("a")],
        [],
        {"a": ("hysteresis", "waiting")},
        "2h",
        states={"a": state(False, hours=2.9)},
    ),
    Case(
        "a shorter dwell is held as well",
        DWELL,
        [some("a", -1.0)],
        ["a"],
        states={"a": state(True, hours=2.9)},
    ),
    Case(
        "an inactive strategy enters at the upper band",
        BANDS,
        [some("a", 1.0), some("b", 0.9)],
        ["a"],
        {"b": ("bands", "failed")},
        "0.9",
    ),
    Case(
        "an active strategy stays down to the lower band",
        BANDS,
        [some("a", 0.5)],
        ["a"],
        states={"a": state(True)},
    ),
    Case(
        "an active strategy leaves below the lower band",
        BANDS,
        [some("a", 0.49)],
        [],
        {"a": ("bands", "failed")},
        states={"a": state(True)},
    ),
    Case(
        "a slot that hysteresis holds is not given away",
        {"selection": {**TWICE["selection"], "hysteresis": {"demote_after": 2}, "topk": {"total": 1}}},
        [some("a", 1.0), some("b", 2.0)],
        ["a"],
        {"b": ("hysteresis", "waiting")},
        "still held",
        states={"a": state(True)},
    ),
]


def run(case: Case) -> JudgmentResult:
    policy: Policy = policy_from(case.policy)
    return judge(policy, case.candidates, NOW, case.states, correlated(case.correlations))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evidence_and_policy_give_this_decision(case: Case) -> None:
    found = run(case).strategies
    assert [item.name for item in found if item.active] == case.active
    left = {
        item.name: (item.violations[0].step, item.violations[0].kind) for item in found if not item.active
    }
    assert left == case.left
    details = " ".join(violation.detail for item in found for violation in item.violations)
    assert case.figure in details
    if case.weights is not None:
        assert [item.weight for item in found if item.active] == pytest.approx(case.weights)
    assert all(item.violations for item in found if not item.active), (
        "a strategy that is left out has a violation"
    )


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


evidence = st.lists(
    st.builds(
        lambda name, sharpe, gross, leverage: some(
            name, sharpe, metrics={"gross_long": gross, "leverage": leverage}
        ),
        st.sampled_from("abcdefgh"),
        st.none() | st.floats(-3, 3),
        st.floats(0, 2),
        st.none() | st.floats(0, 4),
    ),
    max_size=8,
    unique_by=lambda item: item.name,
)
states = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.builds(state, st.booleans(), st.floats(0, 10), st.integers(0, 3), st.integers(0, 3)),
)
FULL = {
    **sel(
        topk={"total": 3, "by_side": {"long": 2}},
        constraints={
            "correlation": {"max_pairwise": 0.5},
            "exposure": {"gross_budget": {"long": 0.6}, "max_leverage": 3.0},
        },
        hysteresis={
            "promote_after": 2,
            "demote_after": 2,
            "min_dwell": "3h",
            "bands": {"metric": "sharpe", "enter": 0.5, "exit": 0.2},
        },
    )
}


@given(evidence, states, st.randoms())
def test_a_decision_depends_on_nothing_but_evidence_policy_and_memory(
    candidates: list[Candidate], before: dict[str, HysteresisState], rng: Any
) -> None:
    policy = policy_from(FULL)
    clash_finder = correlated({"ab": 0.9, "cd": None})
    first = judge(policy, candidates, NOW, before, clash_finder)
    rng.shuffle(candidates)
    assert judge(policy, candidates, NOW, before, clash_finder) == first
    assert (
        {item.strategy_id for item in first.strategies}
        == {item.strategy_id for item in candidates}
        == set(first.states)
    )
    active = [item for item in first.strategies if item.active]
    assert sum(item.weight for item in active) <= 1 + 1e-9
    newcomers = [item for item in active if not (item.name in before and before[item.name].active)]
    assert len(active) <= 3 or not newcomers, "no strategy enters beyond the slots"
    assert all(item.violations for item in first.strategies if not item.active)
