"""A promotion, end to end.

A campaign to live with its windows and approvals, and every way in which it waits or ends.
"""

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.promotions import PromotionRequest
from qmtl_sdk.contracts.worlds import WorldUpdate
from temporal.client import connect
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import PromotionScenario
from workflows.ids import promotion_id


@pytest.fixture
def stage(machine: Machine) -> Iterator[PromotionScenario]:
    found = PromotionScenario(
        machine,
        "w" + uuid.uuid4().hex[:10],
        {"campaign": {"backtest": "1s", "dryrun": "2s"}, "required_signals": ["sharpe"]},
    )
    yield found
    found.close()


def test_a_campaign_goes_to_live_stage_by_stage(stage: PromotionScenario) -> None:
    me = stage.promotion("live", reason="it looks good").requested_by
    first = stage.asked()
    assert (first.requested_by, first.plan.target, first.plan.reason) == (me, "dryrun", "it looks good")
    with pytest.raises(QmtlError, match="E_APPROVAL_OWN"):
        stage.client.approve(stage.world, first.run_id, ApprovalBody(), live=True)
    stage.ana.approve(stage.world, first.run_id, ApprovalBody())
    waiting = stage.waits("it has run in dryrun for", "of 2s, and no session runs it now")
    assert waiting.progress is not None
    assert [(item.name, item.met) for item in waiting.progress.conditions] == [
        ("decision", True),
        ("policy", True),
        ("share_policy", True),
        ("allow_live", True),
        ("stage", True),
        ("measured", True),
        ("fingerprint", True),
        ("signals", True),
        ("campaign", False),
    ]
    assert stage.mode() == (True, "paper")
    opened = stage.run()
    stage.promotion("live", reason="it looks good")  # looks again, instead of in a minute
    second = stage.asked(first.run_id)
    assert second.plan.leads_to_live
    assert second.plan.approval.required == 2
    stage.ana.approve(stage.world, second.run_id, ApprovalBody(), live=True)
    stage.ben.approve(stage.world, second.run_id, ApprovalBody(), live=True)
    assert stage.ended().outcome == "completed"
    assert stage.mode() == (True, "live")
    asked = next(step.started for step in second.steps if step.name == "requested")
    assert (asked - opened).total_seconds() >= 2, "it ran in dryrun for as long as the campaign wants"
    assert stage.said() == [("promotion.requested", me), ("promotion.completed", me)]


def test_what_is_missing_is_said_and_the_promotion_waits_until_it_is_ended(stage: PromotionScenario) -> None:
    stage.campaign()
    stage.promote("dryrun", stage.ana)
    stage.client.update_world(stage.world, WorldUpdate(allow_live=False))
    stage.promotion("live")
    waiting = stage.waits("the world does not allow live")
    assert waiting.progress is not None
    assert {item.name for item in waiting.progress.unmet} >= {"allow_live"}
    assert (
        wait_for(lambda: stage.client.promotions(stage.world), "the list of promotions")[0].strategy_id
        == stage.strategy
    )
    with pytest.raises(QmtlError, match="E_PROMOTION_RUNNING"):
        stage.promotion("dryrun")
    assert stage.promotion("live").to == "live", "asked for again the same it is the same"
    ended = stage.client.end_promotion(stage.world, stage.strategy, "not this year")
    assert (ended.outcome, ended.waits_for) == ("stopped", f"ended by {ended.requested_by}: not this year")
    with pytest.raises(QmtlError, match="E_PROMOTION_ENDED"):
        stage.client.end_promotion(stage.world, stage.strategy)
    assert stage.mode() == (True, "paper")
    assert [action for action, _ in stage.said()] == ["promotion.requested", "promotion.stopped"]


def test_a_promotion_waits_for_another_apply_and_a_rejected_one_ends_it(stage: PromotionScenario) -> None:
    stage.campaign()
    other = stage.ask("dryrun")
    stage.at(other.run_id, "approval")
    stage.promotion()
    stage.waits("an apply can't be requested now", other.run_id, "E_APPLY_RUNNING")
    stage.client.abort(stage.world, other.run_id)
    stage.promotion()  # it looks now, not in a minute
    mine = stage.asked()
    with pytest.raises(QmtlError, match="E_APPLY_RUNNING"):
        stage.client.end_promotion(stage.world, stage.strategy)
    stage.ana.reject(stage.world, mine.run_id, ApprovalBody(reason="not convinced"))
    ended = stage.ended()
    assert ended.outcome == "stopped"
    assert "rejected by ana: not convinced" in ended.waits_for
    assert stage.mode() == (True, "validate")


@pytest.mark.parametrize("direct", [False, True])
def test_a_signal_to_the_promotion_is_handed_on_to_its_apply(machine: Machine, direct: bool) -> None:
    stage = PromotionScenario(
        machine,
        "w" + uuid.uuid4().hex[:10],
        {"approvals": {"required": 1, "live": 1, "direct_signals": direct}},
    )
    try:
        stage.promotion()
        run = stage.asked().run_id

        async def signalled() -> None:
            client = await connect(machine.config.temporal)
            handle = client.get_workflow_handle(promotion_id(stage.world, stage.strategy))
            await handle.signal("approve", {"actor": "mallory", "reason": "trust me"})

        asyncio.run(signalled())
        kept = wait_for(lambda: stage.client.apply_status(stage.world, run).approvals, "kept signal")
        assert [(item.actor, item.via, item.counts) for item in kept] == [("mallory", "direct", direct)]
        if not direct:
            stage.client.abort(stage.world, run)
        assert stage.ended().outcome == ("completed" if direct else "stopped")
    finally:
        stage.close()


def test_a_promotion_outlives_its_worker(stage: PromotionScenario) -> None:
    stage.promotion()
    stage.machine.kill("worker")
    stage.machine.start_worker()
    run = stage.asked().run_id
    stage.machine.kill("worker")
    stage.ana.approve(stage.world, run, ApprovalBody())
    stage.machine.start_worker()
    assert stage.ended().outcome == "completed"
    assert stage.mode() == (True, "paper")


def test_a_second_promotion_asks_for_applies_of_its_own(stage: PromotionScenario) -> None:
    """Found when histories were recorded.

    The first parts of two run ids of Temporal are the same for a minute, and the second promotion took the
    first one's apply for its own.
    """
    stage.promotion()
    first = stage.asked().run_id
    stage.ana.approve(stage.world, first, ApprovalBody())
    assert stage.ended().outcome == "completed"
    back = stage.ask(None, rollback_of=first)
    assert stage.client.apply_status(stage.world, back.run_id, wait_s=30).outcome == "completed"
    stage.promotion()
    second = stage.asked()
    assert second.run_id not in (first, back.run_id)
    assert stage.mode() == (True, "validate")
    stage.client.abort(stage.world, second.run_id)


def test_mistakes_are_said(stage: PromotionScenario) -> None:
    calls = [
        ("E_STRATEGY_UNKNOWN", lambda: stage.client.promote(stage.world, PromotionRequest(strategy="Trand"))),
        ("E_WORLD_UNKNOWN", lambda: stage.client.promote("nowhere", PromotionRequest(strategy="Trend"))),
        (
            "E_LIVE_HEADER",
            lambda: stage.client.promote(stage.world, PromotionRequest(strategy="Trend", to="live")),
        ),
        (
            "E_BODY_INVALID",
            lambda: stage.client._call(
                "POST", f"/worlds/{stage.world}/promotions", json={"strategy": "Trend", "to": "moon"}
            ),
        ),
        ("E_PROMOTION_UNKNOWN", lambda: stage.client.promotion(stage.world, "strategy:nobody")),
        ("E_PROMOTION_UNKNOWN", lambda: stage.client.end_promotion(stage.world, "strategy:nobody")),
    ]
    for code, call in calls:
        with pytest.raises(QmtlError) as refused:
            call()
        assert refused.value.code == code
    assert stage.said() == []


def test_an_archived_world_takes_nothing(stage: PromotionScenario) -> None:
    stage.client.update_world(stage.world, WorldUpdate(state="archived"))
    refused = [
        lambda: stage.ask("dryrun"),
        stage.promotion,
        lambda: stage.client.resume(stage.world),
        stage.submit,
    ]
    for call in refused:
        with pytest.raises(QmtlError, match="E_WORLD_ARCHIVED"):
            call()
    assert "archived by" in stage.client.fence(stage.world).halted
    stage.client.update_world(stage.world, WorldUpdate(state="active"))
    assert stage.client.fence(stage.world).halted, "taken back, it stays halted until someone resumes it"
    stage.client.resume(stage.world)
    assert not stage.client.fence(stage.world).halted
