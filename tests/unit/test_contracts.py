"""Durations, domains, expressions and policies."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts import durations
from qmtl_sdk.contracts.domains import (
    ComputeContext,
    DataScope,
    Domain,
    Downgrade,
    domain_of,
    resolve_context,
    stage_of,
)
from qmtl_sdk.contracts.expressions import evaluate, parse
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.contracts.plans import StrategyAllocation
from qmtl_sdk.contracts.policy_text import PRESETS, policy_from, policy_mapping
from qmtl_sdk.contracts.worlds import Clock, Replay, parse_world

NOW = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "seconds"),
    [
        (60, 60),
        ("60", 60),
        ("60s", 60),
        ("1m", 60),
        ("1 h", 3600),
        ("1D", 86400),
        ("2w", 1209600),
        (timedelta(minutes=5), 300),
    ],
)
def test_durations_in_every_form(form: "int | str | timedelta", seconds: int) -> None:
    assert durations.seconds(form) == seconds


@pytest.mark.parametrize(("failures", "pause_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 15.0), (10**6, 15.0)])
def test_the_pause_before_a_retry_doubles_up_to_its_limit(failures: int, pause_s: float) -> None:
    assert durations.retry_pause_s(failures, 0.5, 15.0) == pause_s


@pytest.mark.parametrize("form", ["", "m", "1x", "-1m", 0, -5, 1.5, True, None, "1m1s", "٣"])
def test_what_is_no_duration_is_refused(form: object) -> None:
    with pytest.raises(QmtlError, match="E_INTERVAL"):
        durations.seconds(form)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "interval", "bars"),
    [(30, 60, 30), ("30m", 60, 30), ("1h", 60, 60), ("30", 60, 30), (timedelta(hours=1), 1800, 2)],
)
def test_periods_are_bars_or_lengths(form: "int | str", interval: int, bars: int) -> None:
    assert durations.bars(form, interval) == bars


@pytest.mark.parametrize("form", [0, -1, "90s", 1.5, True, "x"])
def test_what_is_no_period_is_refused(form: object) -> None:
    with pytest.raises(QmtlError, match="E_PERIOD"):
        durations.bars(form, 60)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "domain"),
    [
        ("validate", Domain.BACKTEST),
        ("compute-only", Domain.BACKTEST),
        ("Compute_Only", Domain.BACKTEST),
        ("offline", Domain.BACKTEST),
        ("sandbox", Domain.BACKTEST),
        ("paper", Domain.DRYRUN),
        ("Paper Trading", Domain.DRYRUN),
        ("sim", Domain.DRYRUN),
        ("simulation", Domain.DRYRUN),
        ("live", Domain.LIVE),
        ("PROD", Domain.LIVE),
        ("production", Domain.LIVE),
        ("shadow", Domain.SHADOW),
        ("moon", None),
        ("", None),
        (None, None),
    ],
)
def test_one_vocabulary(word: str | None, domain: Domain | None) -> None:
    """Trap 13: an unknown word passed through as it was."""
    assert domain_of(word) is domain


def context(mode: str | None, age_s: float = 0, **options: object) -> ComputeContext:
    allow_live = bool(options.pop("allow_live", True))
    scope = DataScope("w", **{"as_of": "2024-01-01", "dataset_fingerprint": "blake3:x", **options})  # type: ignore[arg-type]
    decided_at = NOW - timedelta(seconds=age_s) if age_s is not None else None
    return resolve_context(scope, mode, decided_at=decided_at, now=NOW, allow_live=allow_live)


@pytest.mark.parametrize(
    ("found", "domain", "reason"),
    [
        (context("validate"), Domain.BACKTEST, None),
        (context("paper"), Domain.DRYRUN, None),
        (context("live"), Domain.LIVE, None),
        (context("live", allow_live=False), Domain.BACKTEST, Downgrade.LIVE_NOT_ALLOWED),
        (context("live", dataset_fingerprint=None), Domain.BACKTEST, Downgrade.MISSING_FINGERPRINT),
        (context("live", 301), Domain.BACKTEST, Downgrade.STALE_DECISION),
        (context("live", 300), Domain.LIVE, None),
        (context("paper", as_of=None), Domain.BACKTEST, Downgrade.MISSING_AS_OF),
        (context("validate", as_of=None), Domain.BACKTEST, Downgrade.MISSING_AS_OF),
        (context(None), Domain.BACKTEST, Downgrade.DECISION_UNAVAILABLE),
        (context("moon"), Domain.BACKTEST, Downgrade.UNKNOWN_MODE),
        (context("shadow", as_of=None), Domain.SHADOW, None),
        (context("validate", clock="wall"), Domain.BACKTEST, Downgrade.CLOCK_CONFLICT),
        (context("paper", clock="wall"), Domain.BACKTEST, Downgrade.CLOCK_CONFLICT),
        (context("live", clock="virtual"), Domain.BACKTEST, Downgrade.CLOCK_CONFLICT),
        (context("validate", clock="virtual"), Domain.BACKTEST, None),
        (context("paper", clock="virtual"), Domain.DRYRUN, None),
        (context("live", clock="wall"), Domain.LIVE, None),
        (context("live", clock="virtual", allow_live=False), Domain.BACKTEST, Downgrade.LIVE_NOT_ALLOWED),
    ],
)
def test_what_is_missing_stale_or_unknown_closes(
    found: ComputeContext, domain: Domain, reason: Downgrade | None
) -> None:
    assert (found.execution_domain, found.downgrade_reason) == (domain, reason)
    assert found.downgraded == found.safe_mode == (reason is not None)
    if reason or domain in (Domain.BACKTEST, Domain.SHADOW):
        assert not found.orders_allowed


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("sharpe >= 0.6", {"sharpe": 0.6}, True),
        ("sharpe > 0.6", {"sharpe": 0.6}, False),
        ("sharpe + 0.1*win_rate - 0.2*ulcer", {"sharpe": 1, "win_rate": 0.5, "ulcer": 0.1}, 1.03),
        ("-(sharpe - 2) / 4", {"sharpe": 1}, 0.25),
        ("2 - 1 - 1", {}, 0.0),
        ("8 / 4 / 2", {}, 1.0),
        ("not sharpe > 1 and trades == 3", {"sharpe": 0.5, "trades": 3}, True),
        ("sharpe > 1 or trades > 1 and ulcer > 1", {"sharpe": 2, "trades": 0, "ulcer": 0}, True),
        ("sharpe > 1", {}, None),
        ("sharpe > 1 or trades > 1", {"trades": 2}, True),
        ("sharpe > 1 or trades > 1", {"trades": 0}, None),
        ("sharpe > 1 and trades > 1", {"trades": 0}, False),
        ("sharpe / trades > 1", {"sharpe": 1, "trades": 0}, None),
        ("not sharpe > 1", {}, None),
    ],
)
def test_expressions(text: str, values: dict[str, float | None], expected: object) -> None:
    found = evaluate(parse(text), values)
    assert found == (pytest.approx(expected) if isinstance(expected, float) else expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sharpe >",
        "1 +",
        "(1",
        "1)",
        "sharpe sharpe",
        "__import__('os')",
        "sharpe; 1",
        "1 < 2 < 3",
        "sharpe + (1 > 2)",
        "not 1",
        "1 and 2",
        "sharpe ** 2",
        "(" * 60 + "1" + ")" * 60,
        "1" * 2000,
    ],
)
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(QmtlError, match="E_EXPRESSION|E_METRIC_UNKNOWN"):
        parse(text)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        evaluate(parse(text), dict.fromkeys(METRICS.names(), 1.0))
    except QmtlError:
        return


def test_presets_expand_and_what_is_written_wins() -> None:
    for preset in PRESETS:
        assert policy_from({"preset": preset}).selection.score
    changed = policy_from(policy_mapping("preset: moderate\nselection: {topk: {total: 2}}\n"))
    assert changed.selection.topk is not None
    assert changed.selection.topk.total == 2
    assert "sharpe >= 0.6" in changed.selection.gates.all_of
    replaced = policy_from(policy_mapping("preset: moderate\nselection: {gates: {or: ['sharpe > 1']}}\n"))
    assert replaced.selection.gates.all_of == ()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("a: [", "E_POLICY_INVALID", "not YAML"),
        ("just text", "E_POLICY_INVALID", "mapping"),
        ("preset: moderat", "E_POLICY_INVALID", "did you mean 'moderate'"),
        ("selection: {gats: {}}", "E_POLICY_INVALID", "did you mean 'gates'"),
        ("selection: {gates: {and: ['sharp > 1']}}", "E_METRIC_UNKNOWN", "did you mean 'sharpe'"),
        ("selection: {gates: {and: ['sharpe']}}", "E_EXPRESSION", "needs a condition"),
        ("selection: {score: 'sharpe > 1'}", "E_EXPRESSION", "needs a number"),
        ("selection: {topk: {total: 0}}", "E_POLICY_INVALID", "greater than 0"),
        ("data_currency: {max_lag: soon}", "E_POLICY_INVALID", "not a duration"),
        ("selection: {gates: {and: ['sharpe > 1'], or: ['sharpe > 2']}}", "E_POLICY_INVALID", "either"),
    ],
)
def test_a_policy_that_does_not_parse_is_refused_with_the_place(text: str, code: str, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        policy_from(policy_mapping(text))
    assert caught.value.code == code
    assert said in str(caught.value)


def test_a_policy_survives_its_own_json() -> None:
    policy = policy_from(
        {
            "preset": "moderate",
            "selection": {"gates": {"and": ["sharpe > 1", {"or": ["trades > 3", "ulcer < 1"]}]}},
        }
    )
    assert type(policy).model_validate_json(policy.model_dump_json(by_alias=True)) == policy


def test_worlds_from_yaml() -> None:
    spec, policy = parse_world(
        "world: w\nclock: { replay: { start: 2017-12-30 } }\npolicy: { preset: sandbox }\n"
    )
    assert spec.clock.replay is not None
    assert spec.clock.replay.start == datetime(2017, 12, 30, tzinfo=UTC)
    assert policy == {"preset": "sandbox"}
    assert parse_world("world: w\nclock: wall\n")[0].clock.kind == "wall"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("world: Bad Name", "world"),
        ("world: w\nclok: wall", "did you mean 'clock'"),
        (
            "world: w\ndata: { presets: [ { name: p, source: csv, path: x, interval: 1d, streams: {} } ] }",
            "streams",
        ),
        (
            "world: w\n"
            "data: { presets: [ { name: p, source: replay, path: x, interval: 1d, streams: { A: [a] } } ] }",
            "clock",
        ),
        ("world: w\nexecution: { fee_bps: .nan }", "fee_bps"),
        ("- a", "mapping"),
        ("world: w: x", "not YAML"),
    ],
)
def test_a_world_that_does_not_parse_is_refused_with_the_place(text: str, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        parse_world(text)
    assert caught.value.code == "E_WORLD_INVALID"
    assert said in str(caught.value)


def test_a_replay_clock_runs_from_its_start() -> None:
    clock = Clock(replay=Replay(start=date(2017, 12, 30), speed=60))  # type: ignore[arg-type]
    assert clock.now(NOW, NOW + timedelta(seconds=2)) == datetime(2017, 12, 30, 0, 2, tzinfo=UTC)
    assert Clock().now(NOW, NOW + timedelta(seconds=2)) == NOW + timedelta(seconds=2)


def test_a_plan_names_stages_and_not_modes() -> None:
    assert str(StrategyAllocation(active=True, mode="paper", weight=0.25)) == "dryrun at 0.25"
    assert str(StrategyAllocation(active=True, mode="validate", weight=1)) == "backtest at 1"
    assert str(StrategyAllocation()) == "not active"
    assert [stage_of(mode) for mode in ("compute-only", "live", "odd", None)] == [
        "backtest",
        "live",
        "odd",
        "",
    ]
