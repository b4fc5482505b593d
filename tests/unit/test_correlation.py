"""Correlations of many strategies at once are those of each two."""

import time
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest

from activities.decisions.candidate import Candidate
from activities.decisions.correlation import MIN_DAYS, Correlations, correlation
from activities.decisions.correlation_matrix import CorrelationMatrix, Daily
from activities.decisions.judgment import judge
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns

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


def test_a_thousand_strategies_are_judged_in_seconds() -> None:
    """Two by two it took 190 µs each, which is more than the 30 s of a judgment for some 560."""
    rng = np.random.default_rng(1)
    days = np.arange(1000)
    files: dict[str, bytes] = {}
    for number in range(1000):
        values = rng.normal(0, 0.01, 1000)
        values[0] = 0.0
        files[f"h{number}"] = encode(Returns((days * DAY_S * NS).astype("int64"), values, DAY_S, {}, {}, ()))
    candidates = tuple(
        Candidate(strategy_id=name, bound=place, returns_hash=name, metrics={"sharpe": 1.0 + place / 1000})
        for place, name in enumerate(files)
    )
    policy = policy_from(
        {"selection": {"score": "sharpe", "constraints": {"correlation": {"max_pairwise": 0.9}}}}
    )
    correlations = Correlations(SimpleNamespace(get=files.__getitem__))  # type: ignore[arg-type]
    began = time.process_time()
    checked = correlations.checked(policy, candidates)
    result = judge(policy, checked, NOW, {}, correlations.among(checked))
    assert time.process_time() - began < 30
    assert sum(item.active for item in result.strategies) == 1000
