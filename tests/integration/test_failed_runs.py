"""A run without returns says nothing about its strategy, whoever ran it and however it ended."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.storage.database import Database
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.sessions import SessionHeartbeat
from tests.support.desk import GATED, Desk

FAILED = {"error_code": "E_ABANDONED", "error": "no runner computed it", "examined": False}
REFUSED = {"error_code": "E_RETURNS_INVALID", "error": "a return is not a number"}
OWN = {"self_reported": "the strategy names its returns"}


@pytest.mark.parametrize("shadow", [False, True])
def test_a_failed_run_leaves_a_live_strategy_where_it_is(
    database: Database, tmp_path: Path, shadow: bool
) -> None:
    """Anybody with the same code could take a lease, fail it, and put the strategy out."""
    desk = Desk(database)
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun")
    desk.apply("live")
    desk.evidence(strategy, **FAILED, shadow=shadow)
    assert desk.judge(tmp_path)[strategy].active
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["live"]
    desk.evidence(strategy, **REFUSED)
    assert not desk.judge(tmp_path)[strategy].active, "the service itself refuses these returns"


def test_a_strategy_that_has_only_failed_is_shown_with_its_failure(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database)
    desk.evidence("strategy:new", **FAILED)
    found = desk.judge(tmp_path)["strategy:new"]
    assert not found.active
    assert [(item.kind, item.rule) for item in found.violations] == [("rejected", "E_ABANDONED")]


@pytest.mark.parametrize(
    ("evidence", "active", "kind"),
    [
        ([OWN, FAILED, OWN], True, "self_reported"),
        ([OWN, REFUSED], False, "rejected"),
        ([REFUSED, OWN], True, "self_reported"),
        ([{}, OWN], True, "measured"),
        ([{}, REFUSED, OWN], False, "rejected"),
        ([REFUSED, {}], True, "measured"),
        ([{}, FAILED, FAILED], True, "measured"),
    ],
)
def test_each_kind_of_evidence_hides_what_it_may(
    database: Database, tmp_path: Path, evidence: list[dict[str, Any]], active: bool, kind: str
) -> None:
    """A rejection hid every later run of a self-reported strategy for ever."""
    desk = Desk(database)
    for number, fields in enumerate(evidence):
        desk.evidence("strategy:new", returns_hash=f"r{number}", **fields)
    found = desk.judge(tmp_path)["strategy:new"]
    assert found.active == active
    rejected = [item.rule for item in found.violations if item.kind == "rejected"]
    assert rejected == (["E_RETURNS_INVALID"] if kind == "rejected" else [])
    candidate = desk.requests.planning_context(desk.world).evidence["strategy:new"]
    assert bool(candidate.self_reported) == (kind == "self_reported")


@pytest.mark.parametrize(
    ("runs", "sharpe"),
    [
        ([(2.0, "2024-06-30T00:00:00Z"), (0.1, "2024-06-29T23:00:00Z")], 2.0),
        ([(2.0, "2024-06-30T00:00:00Z"), (0.1, "2024-06-30T00:00:00+00:00")], 0.1),
        (
            [
                (0.1, "2024-06-29T00:00:00Z"),
                (2.0, "2024-06-30T00:00:00Z"),
                (0.1, "2024-06-30T01:00:00+02:00"),
            ],
            2.0,
        ),
        ([(2.0, "2024-06-30T00:00:00Z"), (0.1, None)], 2.0),
    ],
)
def test_a_run_over_an_earlier_past_replaces_no_evidence(
    database: Database, tmp_path: Path, runs: list[tuple[float, str | None]], sharpe: float
) -> None:
    """Anybody who submitted the strategy again as of last year put it out."""
    strict = {**GATED["selection"], "gates": {"and": ["sharpe >= 1"]}}
    desk = Desk(database, found=policy_from({**GATED, "selection": strict}))
    for number, (figure, as_of) in enumerate(runs):
        desk.evidence("strategy:new", figure, f"r{number}", as_of=as_of)
    candidate = desk.requests.planning_context(desk.world).evidence["strategy:new"]
    assert candidate.metrics["sharpe"] == sharpe
    assert desk.judge(tmp_path)["strategy:new"].active == (sharpe > 1)


def test_one_bar_from_the_future_hides_none_that_come_after_it(database: Database, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    desk = Desk(database, found=policy_from({**GATED, "data_currency": {"max_lag": "1d"}}))
    (strategy,) = desk.strategies
    old = {"data_first": now - timedelta(days=400), "data_last": now - timedelta(days=2), "interval_s": 60}
    desk.evidence(strategy, returns_hash="old", **old)
    session = desk.session()
    desk.sessions.heartbeat(session, SessionHeartbeat(bar=(now - timedelta(minutes=2)).isoformat()))
    assert desk.judge(tmp_path)[strategy].active
    for at in (now + timedelta(days=3650), now - timedelta(minutes=1)):
        desk.sessions.heartbeat(session, SessionHeartbeat(bar=at.isoformat()))
    assert desk.judge(tmp_path)[strategy].active
