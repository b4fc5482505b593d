"""Correlations of many strategies at once are those of each two, and leave out the same strategies."""

import math
import time
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.decisions.candidate import Candidate
from activities.decisions.correlation import MIN_DAYS, Correlations, correlation, daily
from activities.decisions.correlation_matrix import CorrelationMatrix, Daily
from activities.decisions.judgment import judge
from activities.decisions.steps import ClashFinders
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from tests.support.pair_by_pair import pair_by_pair

DAY_S = 86_400
NOW = datetime(2024, 1, 10, tzinfo=UTC)


def random_series(rng: np.random.Generator) -> Daily:
    """Days with gaps, some far from those of the others; returns that may be constant in part."""
    first = int(rng.choice([0, 50, 1500, 100_000]))
    days = first + np.flatnonzero(rng.random(int(rng.choice([5, 60, 2500]))) < rng.choice([0.5, 1.0]))
    values = rng.normal(0, 0.01, len(days))
    kind = rng.integers(5)
    if kind == 0:
        values[:] = 0.001
    elif kind == 1:
        values[: len(values) // 2] = 0.0
    elif kind == 2:
        values = np.sin(days / 7) * 1e-6 + 1e-3
    return days.astype("int64"), values


@pytest.mark.parametrize("seed", range(8))
def test_the_matrix_has_the_correlation_of_each_two(seed: int) -> None:
    rng = np.random.default_rng(seed)
    series = [random_series(rng) for _ in range(25)]
    series.append(series[0])
    matrix = CorrelationMatrix(series, MIN_DAYS, correlation)
    for one in range(len(series)):
        for other in range(len(series)):
            if one != other:
                expected = correlation(series[one], series[other])
                assert matrix(one, other) == (None if expected is None else pytest.approx(expected, abs=1e-9))


KINDS = {
    "market": lambda days: np.sin(days),
    "against": lambda days: -np.sin(days),
    "near": lambda days: np.sin(days) + 0.8 * np.cos(7 * days),
    "other": lambda days: np.cos(3 * days),
    "constant": lambda days: np.full(len(days), 0.1),
    "constant in part": lambda days: np.where(days < 45, 0.1, np.sin(days)),
    "late": lambda days: np.where(days < 45, 0.1, np.cos(3 * days)),
}
"""Series by name. Two that are constant on their common days are those of which a sum is not sure."""

SPANS = [(0, 90), (0, 90), (0, 90), (45, 90), (0, 45), (0, 30), (70, 120), (85, 95)]
"""First and last days: some have 19 or fewer in common, or none."""

PAIR = st.tuples(st.integers(0, 99), st.integers(0, 99))


def artifact(kind: str, first: int, last: int) -> bytes:
    """The returns of a strategy on some days."""
    days = np.arange(first, last)
    values = KINDS[kind](days) * 0.01
    values[0] = 0.0
    return encode(Returns(days * DAY_S * NS, values, DAY_S, {}, {}, ()))


ARTIFACTS = {
    f"{kind} {first} {last}": artifact(kind, first, last) for kind in KINDS for first, last in set(SPANS)
}
FOUND = {name: daily(stored) for name, stored in ARTIFACTS.items()}
CANDIDATES = st.lists(
    st.builds(
        lambda kind, span, has_returns, leverage: (
            f"{kind} {span[0]} {span[1]}" if has_returns else "",
            leverage,
        ),
        st.sampled_from(sorted(KINDS)),
        st.sampled_from(SPANS),
        st.integers(0, 9).map(bool),
        st.sampled_from([1.0, 1.0, 1.0, 9.0]),
    ),
    max_size=14,
)


@given(CANDIDATES, st.sampled_from([0.0, 0.3, 0.62, 0.9, 1.0]), st.none() | PAIR, st.booleans())
def test_a_judgment_is_that_of_a_comparison_of_each_two(
    wanted: list[tuple[str, float]], limit: float, pair: tuple[int, int] | None, below: bool
) -> None:
    """Where a pair is given, the limit is its correlation, or the next number below it."""
    candidates = tuple(
        Candidate(
            strategy_id=f"s{place}",
            bound=place,
            returns_hash=digest,
            metrics={"sharpe": 1.0, "leverage": leverage},
        )
        for place, (digest, leverage) in enumerate(wanted)
    )
    names = sorted({digest for digest, _ in wanted if digest})
    no_returns = (np.array([], "int64"), np.array([]))
    matrix = CorrelationMatrix([*(FOUND[name] for name in names), no_returns], MIN_DAYS, correlation)

    def correlate(one: Candidate, other: Candidate) -> float | None:
        if not one.returns_hash or not other.returns_hash:
            return None
        return matrix(names.index(one.returns_hash), names.index(other.returns_hash))

    if pair and names:
        found = abs(matrix(pair[0] % len(names), pair[1] % len(names)) or 0.0)
        limit = max(0.0, math.nextafter(found, -1.0)) if below else found
    constraints = {"correlation": {"max_pairwise": limit}, "exposure": {"max_leverage": 3.0}}
    policy = policy_from({"selection": {"score": "sharpe", "constraints": constraints}})
    clash_finder = Correlations(SimpleNamespace(get=ARTIFACTS.__getitem__)).among(candidates)  # type: ignore[arg-type]
    expected = judge(policy, candidates, NOW, {}, pair_by_pair(correlate))
    assert judge(policy, candidates, NOW, {}, clash_finder) == expected


def test_a_pair_of_which_sums_are_not_sure_is_compared_by_itself() -> None:
    """On their common days one of them has the same return but for a rounding error."""
    days = np.arange(60)
    market = np.sin(days) * 0.01
    flat = np.where(days < 30, 1e-3 + 1e-12 * market, market)
    series = [(days[:30], market[:30]), (days, flat)]
    matrix = CorrelationMatrix(series, MIN_DAYS, correlation)
    exact = correlation(*series)
    assert exact is not None
    assert exact > 0.9
    assert matrix.first_clash(0, np.array([1]), 0.9) == (0, exact)


def test_a_thousand_strategies_are_judged_in_seconds() -> None:
    """Two by two it took 190 µs each, which is more than the 30 s of a judgment for some 560.

    With all correlations at hand, a judgment that looks up each two takes several times as long.
    """
    rng = np.random.default_rng(1)
    days = np.arange(1000)
    files: dict[str, bytes] = {}
    for number in range(1000):
        values = rng.normal(0, 0.01, 1000)
        values[0] = 0.0
        files[f"h{number:03}"] = encode(Returns(days * DAY_S * NS, values, DAY_S, {}, {}, ()))
    candidates = tuple(
        Candidate(strategy_id=name, bound=place, returns_hash=name, metrics={"sharpe": 1.0 + place / 1000})
        for place, name in enumerate(files)
    )
    policy = policy_from(
        {"selection": {"score": "sharpe", "constraints": {"correlation": {"max_pairwise": 0.9}}}}
    )
    correlations = Correlations(SimpleNamespace(get=files.__getitem__))  # type: ignore[arg-type]

    def judged(clash_finder: ClashFinders) -> float:
        """Judge, and return the seconds that it took."""
        began = time.process_time()
        result = judge(policy, candidates, NOW, {}, clash_finder)
        assert sum(item.active for item in result.strategies) == 1000
        return time.process_time() - began

    began = time.process_time()
    candidates = correlations.checked(policy, candidates)
    judged(correlations.among(candidates))
    assert time.process_time() - began < 30
    matrix = CorrelationMatrix([daily(stored) for stored in files.values()], MIN_DAYS, correlation)
    each_two = judged(pair_by_pair(lambda one, other: matrix(one.bound, other.bound)))
    assert judged(correlations.among(candidates)) < each_two / 2
