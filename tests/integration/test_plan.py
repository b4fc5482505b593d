"""What a plan asks for before anything leads to live."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event

from activities.sessions.time_open import time_open
from activities.storage.database import Database
from activities.storage.sqlite import SqliteDatabase
from activities.storage.tables import SessionRow
from activities.storage.transactions import utc_text
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.edges import EdgeOverride
from tests.support.desk import Desk, policy


def test_an_edge_to_live_that_is_opened_takes_the_approvals_of_live(database: Database) -> None:
    """Found by an operator's test: an apply that took nobody to live opened the edge, and asked nobody."""
    desk = Desk(database, found=policy(approvals={"required": 1, "live": 2}))
    with pytest.raises(QmtlError, match="must run in dryrun"):
        desk.request("live")
    desk.apply("dryrun")
    desk.apply("live")
    desk.fence.override(
        desk.world,
        EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="doubts"),
        "olga",
    )
    less = ApplyRequest(run_id="less", to="live", weights={desk.strategies[0]: 0.1})
    plan = desk.requests.plan(desk.world, less, "olga")
    assert plan.live_edge_after
    assert plan.leads_to_live
    assert plan.approval.required == 2


def test_a_strategy_waits_out_its_campaign(database: Database) -> None:
    desk = Desk(database, found=policy(campaign={"backtest": "1h"}))
    with pytest.raises(QmtlError, match="it has been active in backtest for"):
        desk.request("dryrun")


def test_a_plan_that_the_world_has_outrun_is_not_carried_out(database: Database) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.decide(active=False)
    with pytest.raises(QmtlError, match="E_ETAG"):
        desk.freeze(run)
    assert desk.fence_row().state == "open"


def test_an_apply_in_an_old_world_does_the_work_of_one_in_a_clean_world(tmp_path: Path) -> None:
    """Trap 5: an apply became slower with every evaluation.

    Counted in steps of SQLite's machine, which no other load of this machine changes.
    """
    database = SqliteDatabase(tmp_path / "qmtl.db")
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1

    event.listen(database._engine, "checkout", lambda driver, *_: driver.set_progress_handler(tick, 20))

    def steps(desk: Desk) -> int:
        before = done
        run = desk.request("dryrun")
        between = done - before
        desk.freeze(run)
        for step in (desk.steps.drain, desk.steps.switch, desk.steps.unfreeze):
            step(desk.world, run)
        desk.steps.conclude(desk.world, run, "completed", "")
        assert between > 0
        return done - before

    try:
        clean, old = (
            Desk(database, world=name, strategies=5, found=policy(approvals={"required": 1, "live": 1}))
            for name in ("clean", "old")
        )
        for _ in range(60):
            for strategy in old.strategies:
                old.evidence(strategy)
            old.decide()
        one, other = steps(clean), steps(old)
        assert other <= 1.2 * one, (one, other)
    finally:
        database.close()


def test_a_rejection_that_is_repeated_after_the_apply_ended_gets_the_first_answer(database: Database) -> None:
    """The request's answer was lost; before the rejection the same person had approved."""
    desk = Desk(database, found=policy(approvals={"required": 2}))
    run = desk.request("dryrun")
    desk.approvals.record(desk.world, run, "ana", "approve", ApprovalBody())
    rejection = desk.approvals.record(desk.world, run, "ana", "reject", ApprovalBody(reason="doubts"))
    desk.steps.conclude(desk.world, run, "rejected", "by ana")
    assert desk.approvals.record(desk.world, run, "ana", "reject", ApprovalBody()) == rejection


def test_only_time_with_a_session_counts_in_a_campaign_of_dryrun(database: Database) -> None:
    """Five minutes in which nothing ran were "good in dryrun for 5m"."""
    desk = Desk(database, found=policy(campaign={"dryrun": "1h"}))
    desk.apply("dryrun")
    (activation,) = desk.fence.activations(desk.world)
    assert activation.stage_since is not None
    began = activation.stage_since
    with pytest.raises(QmtlError, match="it has run in dryrun for 0s of 1h, and no session runs it now"):
        desk.request("live")
    hours: list[tuple[float, float | None, float]] = [
        (-1, 0.2, 5),  # opened before the stage began
        (0.1, 0.3, 5),  # overlaps
        (0.5, None, 0.6),  # its runner died
        (0.9, None, 5),  # is open
    ]
    with database.write("test", bookkeeping=True) as tx:
        for number, (opened, ended, expires) in enumerate(hours):
            times = [None if at is None else began + timedelta(hours=at) for at in (opened, ended, expires)]
            texts = [None if at is None else utc_text(at) for at in times]
            tx.session.add(
                SessionRow(
                    session_id=f"s{number}",
                    world_id=desk.world,
                    strategy_id=desk.strategies[0],
                    name="",
                    actor="ana",
                    secret_hash="",
                    runner="r",
                    host="",
                    execution_domain="dryrun",
                    opened_at=texts[0] or "",
                    ended_at=texts[1],
                    expires_at=texts[2] or "",
                )
            )
    with database.read() as session:
        (strategy,) = desk.strategies
        until = began + timedelta(hours=1)
        found = time_open(session, desk.world, "dryrun", {strategy: began}, until)[strategy]
    assert found.seconds == pytest.approx(3600 * (0.3 + 0.1 + 0.1))
    assert found.now
