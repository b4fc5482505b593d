"""What a plan asks for before anything leads to live."""

import pytest

from activities.storage.database import Database
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.worlds import EdgeOverride
from tests.orders import Desk, policy


def test_an_edge_to_live_that_is_opened_takes_the_approvals_of_live(database: Database) -> None:
    """Found by an operator's test: an apply that took nobody to live opened the edge, and asked nobody."""
    desk = Desk(database, found=policy(approvals={"required": 1, "live": 2}))
    with pytest.raises(QmtlError, match="must run in dryrun"):
        desk.request("live")
    desk.apply("dryrun")
    desk.apply("live")
    desk.worlds.override(desk.world, EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="doubts"), "olga")
    less = ApplyRequest(run_id="less", to="live", weights={desk.strategies[0]: 0.1})
    plan = desk.applies.plan(desk.world, less, "olga")
    assert plan.live_edge_after
    assert plan.leads_to_live
    assert plan.approval.required == 2


def test_a_strategy_waits_out_its_campaign(database: Database) -> None:
    desk = Desk(database, found=policy(campaign={"backtest": "1h"}))
    with pytest.raises(QmtlError, match="it has been good in backtest for"):
        desk.request("dryrun")


def test_a_plan_that_the_world_has_outrun_is_not_carried_out(database: Database) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.decide(active=False)
    with pytest.raises(QmtlError, match="E_ETAG"):
        desk.applies.freeze(desk.world, run)
    assert desk.gate().state == "open"
