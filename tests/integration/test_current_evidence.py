"""Decisions and plans rest on current evidence, over each database."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete
from sqlmodel import col, func, select

from activities.promotions.sql import SqlPromotions
from activities.storage.database import Database
from activities.storage.tables import EvidenceRow, OutboxRow
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.sessions import SessionHeartbeat
from tests.support.desk import FINGERPRINT, GATED, Desk, policy
from tests.support.machine import wait_for

EDGE = {"src": "domain:backtest", "dst": "domain:live", "active": False, "reason": "doubts"}


def smooth(promote_after: int = 1, demote_after: int = 1, **more: Any) -> Policy:
    """The desk's policy with hysteresis."""
    hysteresis = {"promote_after": promote_after, "demote_after": demote_after}
    return policy_from({**GATED, "selection": {**GATED["selection"], "hysteresis": hysteresis}, **more})


def ago(**delta: float) -> datetime:
    return datetime.now(UTC) - timedelta(**delta)


def report_bar(desk: Desk, at: datetime, domain: str = "dryrun") -> None:
    session = desk.session(domain=domain)
    desk.sessions.heartbeat(session, SessionHeartbeat(bar=at.isoformat()))


# decisions


def test_a_replay_of_decisions_leaves_out_one_whose_evidence_is_archived(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database)
    desk.judge(tmp_path)
    desk.evidence(desk.strategies[0], sharpe=2.0)
    desk.judge(tmp_path)
    with database.write("retention", bookkeeping=True) as tx:
        first = select(func.min(EvidenceRow.seq)).scalar_subquery()
        tx.connection.execute(delete(EvidenceRow).where(col(EvidenceRow.seq) == first))
    found = desk.decisions.history(desk.world)
    assert [candidates[0].metrics["sharpe"] for _, _, candidates in found if candidates] == [2.0]


def test_renewals_alone_put_a_strategy_out_whose_data_goes_stale(database: Database, tmp_path: Path) -> None:
    """Failures of renewals stayed at 0, so it stayed active for ever."""
    start = datetime(2024, 1, 1, tzinfo=UTC)
    clock = {"replay": {"start": start.isoformat(), "speed": 1e6}}  # a second is eleven days
    rules = smooth(demote_after=5, data_currency={"max_lag": "20d"})
    desk = Desk(database, found=rules, clock=clock)
    (strategy,) = desk.strategies
    desk.evidence(strategy, data_first=start, data_last=start)
    assert desk.judge(tmp_path)[strategy].active
    wait_for(lambda: not desk.judge(tmp_path)[strategy].active, "stale data put it out")
    assert [item.active for item in desk.fence.activations(desk.world)] == [False]


def test_the_data_of_a_running_strategy_is_as_current_as_the_newest_bar_of_its_sessions(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database, strategies=2, found=smooth(data_currency={"max_lag": "1d"}))
    strategy, other = desk.strategies
    for name in desk.strategies:
        desk.evidence(name, returns_hash="b", data_first=ago(days=400), data_last=ago(days=10))
    assert not desk.judge(tmp_path)[strategy].active
    report_bar(desk, ago(days=-1))
    assert not desk.judge(tmp_path)[strategy].active, "a bar that has not closed yet says nothing"
    report_bar(desk, ago(minutes=5), domain="shadow")
    assert not desk.judge(tmp_path)[strategy].active, "a shadow run decides nothing"
    report_bar(desk, ago(minutes=5))
    found = desk.judge(tmp_path)
    assert (found[strategy].active, found[other].active) == (True, False)


def test_a_strategy_that_submits_the_same_returns_again_has_passed_once(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database, found=smooth(promote_after=2))
    (strategy,) = desk.strategies
    for bytes_of_the_same in ("first", "again", "as float32"):
        desk.evidence(strategy, returns_hash=bytes_of_the_same)
        assert not desk.judge(tmp_path)[strategy].active
    desk.evidence(strategy, returns_hash="second", sharpe=-1.0)
    desk.judge(tmp_path)
    desk.evidence(strategy, returns_hash="first")
    desk.judge(tmp_path)
    assert not desk.judge(tmp_path)[strategy].active, "evidence from before counts no second time"
    for sharpe in (1.1, 1.2):
        desk.evidence(strategy, sharpe=sharpe)
        assert desk.judge(tmp_path)[strategy].active == (sharpe == 1.2)


# plans


def test_a_held_strategy_keeps_its_stage_and_is_promoted_by_nothing(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database, found=smooth(demote_after=3))
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun")
    desk.evidence(strategy, sharpe=-2.0, returns_hash="bad")
    assert desk.judge(tmp_path)[strategy].active
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]
    with pytest.raises(QmtlError, match=r"it does not pass today: .*sharpe >= 0: sharpe is -2") as error:
        desk.request("live")
    assert error.value.code == "E_APPLY_EMPTY"
    with pytest.raises(QmtlError, match="E_APPLY_EMPTY"):
        desk.request("dryrun", weights={strategy: 1.0}, strategies=[strategy])
    progress = SqlPromotions(database, desk.requests).progress(desk.world, strategy, "live")
    assert "decision" in [condition.name for condition in progress.unmet]


def test_a_rollback_does_not_bring_a_held_strategy_further(database: Database, tmp_path: Path) -> None:
    desk = Desk(database, found=smooth(demote_after=3))
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun", weights={strategy: 0.5})
    less = desk.apply("dryrun", weights={strategy: 0.1})
    desk.evidence(strategy, sharpe=-2.0, returns_hash="bad")
    desk.judge(tmp_path)
    with pytest.raises(QmtlError, match="it does not pass today"):
        desk.request(rollback_of=less)


def test_a_plan_shows_what_it_rests_on(database: Database, tmp_path: Path) -> None:
    desk = Desk(database, found=smooth(demote_after=3))
    (strategy,) = desk.strategies
    desk.evidence(strategy, sharpe=2.0, returns_hash="good", data_last=ago(days=1))
    desk.judge(tmp_path)
    plan = desk.requests.plan(desk.world, ApplyRequest(run_id="r", to="dryrun"), "olga")
    (change,) = plan.changes
    assert (change.grounds.returns_hash, change.grounds.dataset_fingerprint) == ("good", FINGERPRINT)
    assert change.grounds.metrics == {"sharpe": 2.0}
    assert [(item.name, item.met) for item in change.grounds.conditions] == [
        ("passes", True),
        ("measured", True),
        ("fingerprint", True),
    ]


def new_evidence(desk: Desk) -> None:
    desk.evidence(desk.strategies[0], sharpe=5.0, returns_hash="another")


def new_policy(desk: Desk) -> None:
    desk.rules.add_policy(desk.world, policy(approvals={"required": 2}), "olga")


def closed_edge(desk: Desk) -> None:
    desk.fence.override(desk.world, EdgeOverride.model_validate(EDGE), "olga")


@pytest.mark.parametrize(
    ("change", "step"),
    [
        (new_evidence, "freeze"),
        (new_policy, "freeze"),
        (closed_edge, "freeze"),
        (new_policy, "switch"),
        (closed_edge, "switch"),
    ],
)
def test_a_plan_is_not_carried_out_once_what_it_rests_on_has_changed(
    database: Database, tmp_path: Path, change: Any, step: str
) -> None:
    """Evidence and conditions were no part of the etag: an approved plan went on without them."""
    desk = Desk(database)
    desk.judge(tmp_path)
    run = desk.request("dryrun")
    desk.judge(tmp_path)  # judged again on the same evidence
    if step == "switch":
        desk.freeze(run)
        desk.steps.drain(desk.world, run)
    else:
        desk.approve(run)
    change(desk)
    with pytest.raises(QmtlError, match="E_ETAG"):
        getattr(desk.steps, step)(desk.world, run)
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["validate"]


def test_new_evidence_during_a_drain_does_not_undo_it(database: Database, tmp_path: Path) -> None:
    """An author who submits again could end every apply of their strategy after its freeze."""
    desk = Desk(database)
    desk.judge(tmp_path)
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    new_evidence(desk)
    desk.judge(tmp_path)
    desk.steps.switch(desk.world, run)
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]


def test_evidence_of_another_strategy_leaves_a_plan_as_it_is(database: Database, tmp_path: Path) -> None:
    desk = Desk(database, strategies=2)
    desk.judge(tmp_path)
    run = desk.request("dryrun", strategies=[desk.strategies[0]])
    desk.evidence(desk.strategies[1], sharpe=0.5, returns_hash="other")
    desk.freeze(run)


def test_an_edge_that_an_operator_closed_during_the_drain_stays_closed(
    database: Database, tmp_path: Path
) -> None:
    """The switch opened it again, and so did the restoration after it."""
    desk = Desk(database)
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun")
    desk.apply("live")
    assert desk.fence_row().live_edge
    run = desk.request("live", weights={strategy: 0.5})
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    closed_edge(desk)
    with pytest.raises(QmtlError, match="edge to live"):
        desk.steps.switch(desk.world, run)
    desk.steps.restore(desk.world, run)
    assert not desk.fence_row().live_edge
    desk.steps.unfreeze(desk.world, run)
    assert not desk.fence_row().live_edge


def test_a_world_whose_apply_was_terminated_is_resumed_as_it_was(database: Database, tmp_path: Path) -> None:
    """The freeze closes the edge to live; without the restoration it stayed closed."""
    desk = Desk(database)
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun")
    desk.apply("live")
    run = desk.request("live", weights={strategy: 0.5})
    desk.freeze(run)
    assert not desk.fence_row().live_edge
    desk.steps.drain(desk.world, run)
    desk.steps.end_terminated(desk.world, run)
    desk.steps.resume(desk.world, "olga", "checked")
    assert desk.fence_row().live_edge
    (found,) = desk.fence.activations(desk.world)
    assert (found.effective_mode, found.weight) == ("live", 1.0)


def test_strategies_that_are_promoted_one_by_one_share_the_world(database: Database, tmp_path: Path) -> None:
    """The first kept a weight of 1, and each later one ended in E_WEIGHT."""
    desk = Desk(database, strategies=3)
    for strategy in desk.strategies[1:]:
        desk.evidence(strategy, sharpe=-1.0, returns_hash="bad")
    for number, strategy in enumerate(desk.strategies):
        if number:
            desk.evidence(strategy, sharpe=2.0, returns_hash="good")
        desk.judge(tmp_path)
        desk.apply("dryrun", strategies=[strategy])
        found = {item.strategy_id: item for item in desk.fence.activations(desk.world) if item.active}
        assert [item.effective_mode for item in found.values()] == ["paper"] * (number + 1)
        assert sum(item.weight for item in found.values()) == pytest.approx(1.0)


# a decision that asks nobody


def unasked(**gating: Any) -> Policy:
    return policy(**{"approvals": {"required": 0}, "domains": {"from": "backtest", "to": "dryrun"}, **gating})


@pytest.mark.parametrize(
    ("gating", "why"),
    [
        ({"required_signals": ["sharpe", "ulcer"]}, "the required metric ulcer is missing"),
        ({"dataset_fingerprint": "blake3:other"}, "the policy pins blake3:other"),
        ({"campaign": {"backtest": "1h"}}, ""),
    ],
)
def test_a_decision_alone_takes_nobody_to_dryrun_who_lacks_a_condition(
    database: Database, tmp_path: Path, gating: dict[str, Any], why: str
) -> None:
    desk = Desk(database, found=unasked(**gating))
    found = desk.judge(tmp_path)[desk.strategies[0]]
    assert found.active
    assert why in found.stays
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["validate"]


def test_a_decision_alone_pins_the_data_that_each_strategy_was_judged_on(
    database: Database, tmp_path: Path
) -> None:
    desk = Desk(database, strategies=2, found=unasked(dataset_fingerprint=None))
    first, second = desk.strategies
    desk.evidence(second, returns_hash="own", dataset_fingerprint="")
    found = desk.judge(tmp_path)
    assert "fingerprint none" in found[second].stays
    pinned = {item.strategy_id: item for item in desk.fence.activations(desk.world)}
    assert (pinned[first].effective_mode, pinned[first].dataset_fingerprint) == ("paper", FINGERPRINT)
    assert pinned[second].effective_mode == "validate"
    desk.evidence(first, returns_hash="new", dataset_fingerprint="blake3:new")
    desk.judge(tmp_path)
    (kept,) = desk.fence.activations(desk.world, first)
    assert kept.dataset_fingerprint == FINGERPRINT, "pinned when it entered its stage"


def test_a_decision_alone_does_not_take_a_held_strategy_to_dryrun(database: Database, tmp_path: Path) -> None:
    desk = Desk(database, found=smooth(demote_after=3))
    (strategy,) = desk.strategies
    desk.judge(tmp_path)
    desk.evidence(strategy, sharpe=-1.0, returns_hash="bad")
    rules = smooth(demote_after=3, gating_policy={**GATED["gating_policy"], "approvals": {"required": 0}})
    desk.rules.add_policy(desk.world, rules, "olga")
    assert desk.judge(tmp_path)[strategy].active
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["validate"]


# what readers see


def published(desk: Desk, kind: str) -> list[dict[str, Any]]:
    with desk.database.read() as session:
        bodies = session.exec(
            select(OutboxRow.data).where(OutboxRow.type == kind).order_by(col(OutboxRow.seq))
        )
        return [json.loads(body) for body in bodies]


def test_activations_and_events_say_what_the_fence_says(database: Database, tmp_path: Path) -> None:
    """A poller of a frozen world saw `active: true`, epoch 1 and no freeze."""
    desk = Desk(database)
    desk.judge(tmp_path)
    desk.apply("dryrun")
    (decided,) = published(desk, "decision_updated")[-1:]
    assert decided["execution_domain"] == "backtest"
    (activated,) = [
        item
        for item in published(desk, "activation_updated")
        if item["strategy_id"] == desk.strategies[0] and item["effective_mode"] == "paper"
    ]
    assert activated["execution_domain"] == "dryrun"
    assert activated["epoch"] == desk.epoch - 1, "under the freeze, before the world was opened"
    run = desk.request("dryrun", weights={desk.strategies[0]: 0.5})
    desk.freeze(run)
    (frozen,) = desk.fence.activations(desk.world)
    assert (frozen.freeze, frozen.drain, frozen.epoch) == (True, False, desk.epoch)
    assert not frozen.active_in_effect
    desk.steps.drain(desk.world, run)
    (draining,) = desk.fence.activations(desk.world)
    assert (draining.freeze, draining.drain) == (True, True)
    desk.fence.halt(desk.world, "olga", "")
    (halted,) = desk.fence.activations(desk.world)
    assert halted.halted
