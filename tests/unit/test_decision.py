"""The judgment: what is left out, at which step, by what figure."""

from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.decisions.candidate import Candidate
from activities.decisions.explain import judgment_lines
from activities.decisions.judgment import STEPS, etag_of, judge, summary
from qmtl_sdk.contracts.decisions import JudgmentStep, StrategyDecision
from qmtl_sdk.contracts.policy_text import policy_from
from tests.support.pair_by_pair import UNCORRELATED

NOW = datetime(2024, 1, 10, tzinfo=UTC)
POLICY = policy_from(
    {
        "data_currency": {"max_lag": "3d", "min_history": "250d"},
        "selection": {
            "gates": {"and": ["sharpe >= 0.6", "max_drawdown <= 0.35"]},
            "score": "sharpe",
            "topk": {"total": 2},
        },
    }
)


def candidate(name: str, sharpe: float | None = 1.0, bound: int = 1, **fields: object) -> Candidate:
    base = {
        "metrics": {"sharpe": sharpe, "max_drawdown": 0.1, "annual_return": 0.2},
        "data_first": NOW - timedelta(days=400),
        "data_last": NOW - timedelta(days=1),
    }
    return Candidate(**{"strategy_id": name, "name": name, "bound": bound, **base, **fields})  # type: ignore[arg-type]


def verdicts(
    policy: object, candidates: tuple[Candidate, ...], now: datetime = NOW
) -> tuple[StrategyDecision, ...]:
    """The first judgment of candidates that are not correlated."""
    return judge(policy, candidates, now, {}, UNCORRELATED).strategies  # type: ignore[arg-type]


def decided(*candidates: Candidate, policy: object = POLICY) -> dict[str, StrategyDecision]:
    return {item.strategy_id: item for item in verdicts(policy, candidates)}


@pytest.mark.parametrize(
    ("found", "step", "kind", "figure"),
    [
        (candidate("a", 0.59), "gates", "failed", "sharpe is 0.59"),
        (candidate("a", None), "gates", "insufficient", "sharpe is missing"),
        (
            candidate("a", metrics={"sharpe": None, "trades": 0.0}),
            "gates",
            "insufficient",
            "sharpe is missing: it took no position at any bar",
        ),
        (candidate("a", data_last=NOW - timedelta(days=3, seconds=1)), "data_currency", "stale", "3d"),
        (candidate("a", data_first=NOW - timedelta(days=100)), "data_currency", "short_history", "99d"),
        (candidate("a", data_last=None), "data_currency", "insufficient", "not known"),
        (
            candidate("a", error_code="E_LOOKAHEAD", error="looks ahead"),
            "evidence",
            "rejected",
            "looks ahead",
        ),
    ],
)
def test_each_step_leaves_out_with_its_figure(found: Candidate, step: str, kind: str, figure: str) -> None:
    mine = decided(found)["a"]
    assert not mine.active
    assert mine.weight == 0
    assert (mine.violations[0].step, mine.violations[0].kind) == (step, kind)
    assert figure in mine.violations[0].detail


def test_edges_of_the_rules_pass() -> None:
    assert decided(candidate("a", 0.6))["a"].active
    assert decided(candidate("a", data_last=NOW - timedelta(days=3)))["a"].active
    assert decided(candidate("a", data_last=NOW, data_first=NOW - timedelta(days=250)))["a"].active


def test_top_k_takes_the_best_and_says_who_was_the_last() -> None:
    found = decided(candidate("low", 0.7), candidate("mid", 0.8), candidate("high", 0.9))
    assert [found[name].rank for name in ("high", "mid", "low")] == [1, 2, 3]
    assert found["high"].weight == found["mid"].weight == 0.5
    assert found["low"].violations[0].step == "topk"
    assert "mid, has 0.8" in found["low"].violations[0].detail
    assert found["high"].contribution == pytest.approx(0.1)


def test_ties_go_to_the_older_binding_then_to_the_name() -> None:
    found = decided(candidate("b", 1.0, bound=2), candidate("c", 1.0, bound=1), candidate("a", 1.0, bound=2))
    assert (found["c"].rank, found["a"].rank, found["b"].rank) == (1, 2, 3)


def test_alternatives_and_groups() -> None:
    policy = policy_from(
        {"selection": {"gates": {"or": ["sharpe > 5", {"and": ["sharpe > 0.5", "max_drawdown < 0.2"]}]}}}
    )
    assert decided(candidate("a"), policy=policy)["a"].active
    left_out = decided(candidate("a", 0.1), policy=policy)["a"]
    assert {item.rule for item in left_out.violations} == {"sharpe > 5", "sharpe > 0.5"}


def test_a_score_without_its_metric_is_insufficient() -> None:
    policy = policy_from({"selection": {"score": "sharpe + win_rate"}})
    assert decided(candidate("a"), policy=policy)["a"].violations[0].step == "score"


def test_an_empty_world_has_an_empty_decision() -> None:
    assert verdicts(POLICY, ()) == ()
    assert summary(()) == "0 of 0 active"


@given(
    st.permutations(
        [candidate("a", 0.9), candidate("b", 0.5), candidate("c", 0.9, bound=2), candidate("d", None)]
    )
)
def test_the_same_evidence_gives_the_same_decision_in_any_order(found: list[Candidate]) -> None:
    decisions = verdicts(POLICY, tuple(found))
    assert [item.strategy_id for item in decisions] == ["a", "c", "b", "d"]


def test_an_etag_hashes_content_and_not_the_clock() -> None:
    """Trap 13: the etag held the clock, so it never matched."""
    first, later = (
        verdicts(POLICY, (candidate("a"),)),
        verdicts(POLICY, (candidate("a"),), NOW + timedelta(hours=1)),
    )
    assert etag_of("w", 1, "validate", first) == etag_of("w", 1, "validate", later)
    assert etag_of("w", 1, "validate", first) != etag_of("w", 2, "validate", first)
    assert etag_of("w", 1, "validate", first) != etag_of(
        "w", 1, "validate", verdicts(POLICY, (candidate("a", 0.7),))
    )


def test_violations_name_the_steps_of_the_judgment_in_order() -> None:
    assert tuple(step.name for step in STEPS) == get_args(JudgmentStep)


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (
            candidate("a", data_last=NOW - timedelta(days=4)),
            {"data currency": "max_lag = 3d", "gates": "passed", "score": "not reached"},
        ),
        (candidate("a", 0.5), {"data currency": "passed", "gates": "sharpe >= 0.6", "top-k": "not reached"}),
        (
            candidate("a", 0.8),
            {"gates": "passed", "hysteresis bands": "bands.enter: sharpe >= 0.9", "score": "not reached"},
        ),
        (
            candidate("a", error_code="E_LOOKAHEAD", error="looks ahead"),
            {"evidence": "E_LOOKAHEAD", "gates": "not reached", "top-k": "not reached"},
        ),
    ],
)
def test_an_explanation_says_passed_only_of_steps_that_checked_the_strategy(
    found: Candidate, lines: dict[str, str]
) -> None:
    bands = {"metric": "sharpe", "enter": 0.9, "exit": 0.4} if found.metrics["sharpe"] == 0.8 else None
    selection = {"gates": {"and": ["sharpe >= 0.6"]}, "score": "sharpe", "hysteresis": {"bands": bands}}
    policy = policy_from({"data_currency": {"max_lag": "3d"}, "selection": selection})
    judged = decided(found, policy=policy)["a"]
    explained = dict(line.strip().split(": ", 1) for line in judgment_lines(judged))
    assert {label: text for label, text in lines.items() if not explained[label].startswith(text)} == {}
