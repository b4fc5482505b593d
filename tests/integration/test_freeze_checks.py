"""What a freeze checks again, and what it leaves to others."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from activities.access.principals import SqlPrincipalStore
from activities.applies.planning_context import planning_context
from activities.storage.database import Database
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody, approvers
from qmtl_sdk.contracts.errors import QmtlError
from tests.support.desk import Desk, policy
from tests.support.statements import statements


def test_a_rejection_after_the_last_approval_stops_the_freeze(database: Database) -> None:
    """It was stored, answered and counted, and the apply went on."""
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.approve(run)
    desk.approvals.record(desk.world, run, "zoe", "reject", ApprovalBody(reason="stop"))
    with pytest.raises(QmtlError, match="rejected by zoe") as caught:
        desk.steps.freeze(desk.world, run)
    assert caught.value.code == "E_APPLY_REJECTED"
    assert desk.fence_row().state == "open"


@pytest.mark.parametrize("who", ["approver0", "olga"])
def test_a_person_who_is_disabled_approves_and_requests_nothing(database: Database, who: str) -> None:
    desk = Desk(database)
    people = SqlPrincipalStore(database)
    people.add(who, "omar")
    run = desk.request("dryrun")
    desk.approve(run)
    people.disable(who, "omar")
    counted = approvers(desk.approvals.read(desk.world, run))
    assert counted == ({"approver0"} - {who})
    with pytest.raises(QmtlError, match=who if who == "olga" else "0 of 1 approvals") as caught:
        desk.steps.freeze(desk.world, run)
    assert caught.value.code == "E_APPROVAL_MISSING"
    people.add(who, "omar")
    desk.steps.freeze(desk.world, run)


def test_a_freeze_without_the_approvals_that_its_plan_asks_for_is_refused(database: Database) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    with pytest.raises(QmtlError, match="0 of 1 approvals count"):
        desk.steps.freeze(desk.world, run)


def test_another_authors_strategy_in_backtest_stops_no_apply(database: Database, tmp_path: Path) -> None:
    """Each one that passed changed the weights of all, so no approval was in time in a busy world."""
    desk = Desk(database, strategies=2)
    desk.judge(tmp_path)
    run = desk.request("dryrun", strategies=[desk.strategies[0]])
    desk.approve(run)
    desk.evidence("strategy:wnew", sharpe=0.5)
    assert desk.judge(tmp_path)["strategy:wnew"].active
    desk.steps.freeze(desk.world, run)
    desk.evidence("strategy:wother", sharpe=0.5)
    desk.judge(tmp_path)
    desk.steps.drain(desk.world, run)
    desk.steps.switch(desk.world, run)
    desk.steps.unfreeze(desk.world, run)


def test_a_change_of_a_strategy_that_trades_stops_the_apply(database: Database, tmp_path: Path) -> None:
    desk = Desk(database, strategies=2)
    first, second = desk.strategies
    desk.judge(tmp_path)
    desk.apply("dryrun", strategies=[first])
    run = desk.request("dryrun", strategies=[second])
    desk.approve(run)
    desk.evidence(first, error_code="E_RETURNS_INVALID", error="changed")
    desk.judge(tmp_path)
    with pytest.raises(QmtlError, match="E_ETAG"):
        desk.steps.freeze(desk.world, run)


def test_what_a_terminated_apply_has_switched_can_be_rolled_back(database: Database) -> None:
    """It was refused as one that had changed nothing, because its world had stayed frozen."""
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    desk.steps.switch(desk.world, run)
    desk.steps.end_terminated(desk.world, run)
    assert desk.requests.find(desk.world, run).outcome == "frozen"
    desk.steps.resume(desk.world, "olga", "checked")
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]
    desk.apply(run_id="back", rollback_of=run)
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["validate"]


@pytest.mark.parametrize("reached", [(), ("drain",)])
def test_what_a_terminated_apply_has_not_switched_has_changed_nothing(
    database: Database, reached: tuple[str, ...]
) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.freeze(run)
    for step in reached:
        getattr(desk.steps, step)(desk.world, run)
    desk.steps.end_terminated(desk.world, run)
    desk.steps.resume(desk.world, "olga", "checked")
    with pytest.raises(QmtlError, match="has changed nothing"):
        desk.requests.request(desk.world, ApplyRequest(run_id="back", rollback_of=run), "olga")


def test_the_time_of_many_strategies_in_dryrun_is_read_at_once(database: Database, tmp_path: Path) -> None:
    """A query for each held the fence for a second."""
    read = []
    for world, count in (("few", 2), ("many", 20)):
        desk = Desk(database, world, count, found=policy(campaign={"dryrun": "1s"}))
        desk.judge(tmp_path)
        desk.apply("dryrun")
        began = datetime.now(UTC)
        for strategy in desk.strategies:
            desk.session(strategy)
        with database.read() as session, statements() as found:
            ran = planning_context(session, world).ran
        assert set(ran) == set(desk.strategies)
        assert all(item.now for item in ran.values())
        assert all(0 <= item.seconds <= (datetime.now(UTC) - began).total_seconds() for item in ran.values())
        read.append(len(found))
        with database.read() as session:
            assert set(planning_context(session, world, desk.strategies[:1]).ran) == {desk.strategies[0]}
            assert planning_context(session, world, ()).ran == {}
    assert read[0] == read[1]
