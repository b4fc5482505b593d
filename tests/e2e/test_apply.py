"""Two-phase apply, end to end.

From a judged strategy to live, with approvals, an abort, a failed switch and a rollback.
"""

import asyncio
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.worlds import WorldUpdate
from temporal.client import connect
from tests.support.machine import Machine, wait_for
from tests.support.scenarios import ApplyScenario, person
from workflows.ids import apply_id


@pytest.fixture
def stage(machine: Machine, request: pytest.FixtureRequest) -> Iterator[ApplyScenario]:
    found = ApplyScenario(machine, "w" + uuid.uuid4().hex[:10])
    yield found
    found.close()


def test_a_strategy_goes_to_dryrun_then_live_and_back_with_the_approvals_that_the_policy_wants(
    stage: ApplyScenario,
) -> None:
    assert stage.mode() == (True, "validate")
    first = stage.promote("dryrun", stage.ana)
    assert (first.outcome, first.reason) == ("completed", "")
    assert [step.name for step in first.steps] == [
        "requested",
        "approval",
        "freeze",
        "drain",
        "switch",
        "unfreeze",
    ]
    assert all(step.ended is not None and step.started <= step.ended for step in first.steps)
    assert stage.mode() == (True, "paper")
    assert first.epoch_after > first.epoch_before
    assert not stage.client.fence(stage.world).live_edge

    run = stage.ask("live").run_id
    stage.at(run, "approval")
    stage.ana.approve(stage.world, run, ApprovalBody(reason="looks right"), live=True)
    assert stage.client.apply_status(stage.world, run, wait_s=1).outcome is None, "two must agree"
    stage.ana.approve(stage.world, run, ApprovalBody(reason="again"), live=True)
    assert stage.client.apply_status(stage.world, run, wait_s=1).outcome is None, "one person counts once"
    stage.ben.approve(stage.world, run, ApprovalBody(), live=True)
    assert stage.client.apply_status(stage.world, run, wait_s=30).outcome == "completed"
    assert stage.mode() == (True, "live")
    fence = stage.client.fence(stage.world)
    assert fence.live_edge
    assert fence.state == "open"
    assert stage.client.world(stage.world).pinned_fingerprint == stage.fingerprint

    back = stage.ask(None, rollback_of=run)
    ended = stage.client.apply_status(stage.world, back.run_id, wait_s=30)
    assert ended.outcome == "completed", "going down needs nobody's approval"
    assert stage.mode() == (True, "paper")
    assert not stage.client.fence(stage.world).live_edge
    assert stage.client.audit(stage.world, verify=True)["verified"] > 10


def test_a_rejection_an_abort_and_an_early_end_leave_everything_as_it_was(stage: ApplyScenario) -> None:
    epoch = stage.client.fence(stage.world).epoch
    run = stage.ask().run_id
    stage.at(run, "approval")
    stage.ana.reject(stage.world, run, ApprovalBody(reason="not today"))
    ended = stage.client.apply_status(stage.world, run, wait_s=30)
    assert (ended.outcome, ended.reason) == ("rolled_back", "rejected by ana: not today")
    run = stage.ask().run_id
    stage.at(run, "approval")
    aborted = stage.client.abort(stage.world, run, "changed my mind")
    assert aborted.outcome == "rolled_back"
    assert "aborted by" in aborted.reason
    assert "changed my mind" in aborted.reason
    asked = [
        item
        for item in stage.client.audit(stage.world, limit=1000)["entries"]
        if item["action"] == "apply.abort_requested"
    ]
    assert [(item["actor"], item["after"]) for item in asked] == [
        (aborted.requested_by, {"reason": "changed my mind"})
    ], "whoever it was, an abort that has no entry came straight to Temporal"
    assert stage.client.fence(stage.world).epoch == epoch, "nothing was frozen"
    assert stage.mode() == (True, "validate")
    with pytest.raises(QmtlError, match="E_APPLY_ENDED"):
        stage.client.abort(stage.world, run)
    with pytest.raises(QmtlError, match="E_APPLY_ENDED"):
        stage.ana.approve(stage.world, run, ApprovalBody())


@pytest.mark.parametrize("dead", ["temporal", "worker"])
def test_an_abort_that_nobody_receives_is_carried_out_when_they_are_back(
    machine: Machine, stage: ApplyScenario, dead: str
) -> None:
    """It was audited and forgotten, and the person was told to try again or waited for ever."""
    run = stage.ask().run_id
    stage.at(run, "approval")
    machine.kill(dead)
    try:
        with pytest.raises(QmtlError, match=r"the abort of .* is recorded.*E_RECORDED"):
            stage.client.abort(stage.world, run, "changed my mind")
        found = stage.client.apply_status(stage.world, run)
        assert found.outcome is None
        assert f"aborted by {found.aborted_by}" in found.waits_for
    finally:
        machine.start_temporal() if dead == "temporal" else machine.start_worker()
    ended = stage.client.apply_status(stage.world, run, wait_s=60)
    assert ended.outcome == "rolled_back"
    assert "changed my mind" in ended.reason


def test_open_orders_hold_a_drain_up_to_its_limit_and_an_abort_ends_it(stage: ApplyScenario) -> None:
    assert stage.promote("dryrun", stage.ana).outcome == "completed"
    with stage.stuck_order():
        run = stage.drains("live")
        assert stage.client.fence(stage.world).state == "draining"
        assert stage.client.abort(stage.world, run, "too long").outcome == "rolled_back"
        assert stage.client.fence(stage.world).state == "open"
        late = stage.promote("live", stage.ana, stage.ben)
        assert late.outcome == "rolled_back"
        assert "E_DRAIN_TIMEOUT" in late.reason
        assert stage.mode() == (True, "paper")
    assert stage.promote("live", stage.ana, stage.ben).outcome == "completed"


def test_a_switch_that_is_refused_restores_and_stays_frozen_until_someone_resumes(
    stage: ApplyScenario,
) -> None:
    """Trap 4: a crash after freeze left the world frozen, and nothing went on."""
    assert stage.promote("dryrun", stage.ana).outcome == "completed"
    with stage.stuck_order() as unstick:
        run = stage.drains("live")
        stage.client.update_world(stage.world, WorldUpdate(allow_live=False))
        unstick()
        ended = stage.client.apply_status(stage.world, run, wait_s=30)
    assert ended.outcome == "frozen"
    assert "E_LIVE_NOT_ALLOWED" in ended.reason
    assert "qmtl world resume" in ended.reason
    assert stage.mode() == (True, "paper")
    assert stage.client.fence(stage.world).held_by == run
    with pytest.raises(QmtlError, match="E_WORLD_FROZEN"):
        stage.ask("dryrun", weights={stage.strategy: 0.5})
    assert stage.client.resume(stage.world, "looked at it")["lifted"] == [f"draining by {run}"]
    assert stage.client.fence(stage.world).state == "open"
    assert stage.client.apply_status(stage.world, run).outcome == "frozen"


@pytest.mark.parametrize("direct", [False, True])
def test_a_signal_straight_to_temporal_counts_only_where_the_policy_says_so(
    machine: Machine, direct: bool
) -> None:
    stage = ApplyScenario(
        machine,
        "w" + uuid.uuid4().hex[:10],
        {"approvals": {"required": 1, "live": 1, "direct_signals": direct}},
    )
    try:
        run = stage.ask().run_id
        stage.at(run, "approval")
        asyncio.run(signalled(machine, stage.world))
        kept = wait_for(lambda: stage.client.apply_status(stage.world, run).approvals, "kept signal")
        assert [(item.actor, item.via, item.counts) for item in kept] == [("mallory", "direct", direct)]
        assert stage.client.apply_status(stage.world, run, wait_s=10 if direct else 1).outcome == (
            "completed" if direct else None
        )
        if not direct:
            stage.client.abort(stage.world, run)
    finally:
        stage.close()


async def signalled(machine: Machine, world_id: str) -> None:
    """As `temporal workflow signal --name approve` does."""
    client = await connect(machine.config.temporal)
    await client.get_workflow_handle(apply_id(world_id)).signal(
        "approve", {"actor": "mallory", "reason": "trust me", "approval_id": "approval-made-up"}
    )


def test_what_can_t_be_applied_is_refused_before_anything_changes(stage: ApplyScenario) -> None:
    def content() -> list[Any]:
        return [
            stage.client.fence(stage.world),
            stage.client.activation(stage.world),
            stage.client.applies(stage.world),
            stage.client.policies(stage.world),
        ]

    before = content()
    author = person(stage.machine, "arthur", Role.AUTHOR)
    run = stage.ask().run_id
    waiting = stage.at(run, "approval")
    refusals = [
        ("E_APPROVAL_ROLE", lambda: author.approve(stage.world, run, ApprovalBody())),
        ("E_APPROVAL_OWN", lambda: stage.client.approve(stage.world, run, ApprovalBody())),
        ("E_ETAG", lambda: stage.ana.approve(stage.world, run, ApprovalBody(etag="blake3:old"))),
        ("E_APPLY_UNKNOWN", lambda: stage.ana.approve(stage.world, "run-nobody", ApprovalBody())),
        ("E_APPLY_RUNNING", stage.ask),
        (
            "E_BODY_INVALID",
            lambda: stage.client._call("POST", f"/worlds/{stage.world}/apply", json={"run_id": "a b"}),
        ),
        ("E_METRIC_UNKNOWN", lambda: stage.client.add_policy(stage.world, {"selection": {"score": "sharp"}})),
        (
            "E_METRIC_UNKNOWN",
            lambda: stage.client.add_policy(
                stage.world, {"gating_policy": {"required_signals": ["nothing"]}}
            ),
        ),
        ("E_BODY_TOO_LARGE", lambda: stage.client.add_policy(stage.world, {"preset": "sandbox" * 1_500_000})),
        ("E_WORLD_UNKNOWN", lambda: stage.client.apply("nowhere", ApplyRequest(run_id="r"))),
    ]
    for code, call in refusals:
        with pytest.raises(QmtlError) as refused:
            call()
        assert refused.value.code == code
    assert stage.client.apply_status(stage.world, run).approvals == waiting.approvals == ()
    stage.client.abort(stage.world, run)
    with pytest.raises(QmtlError, match="E_APPLY_ENDED"):
        stage.ana.approve(stage.world, run, ApprovalBody())
    assert content()[:2] == before[:2]
    assert content()[3] == before[3]
    for missing, code in (
        ("dataset_fingerprint", "E_FINGERPRINT_MISSING"),
        ("share_policy", "E_SHARE_POLICY"),
    ):
        gating = {name: value for name, value in stage.policy["gating_policy"].items() if name != missing}
        stage.client.add_policy(stage.world, {**stage.policy, "gating_policy": gating})
        with pytest.raises(QmtlError, match=code):
            stage.ask()
    author.close()


def test_one_apply_at_a_time_and_one_body_for_a_run_id(stage: ApplyScenario) -> None:
    """Trap 6: the same run_id with another body got the earlier answer."""
    first = stage.ask()
    with pytest.raises(QmtlError, match="E_APPLY_RUNNING"):
        stage.ask()
    again = ApplyRequest(run_id=first.run_id, to="dryrun")
    assert stage.client.apply(stage.world, again, live=True).run_id == first.run_id
    with pytest.raises(QmtlError, match="E_RUN_ID_REUSED"):
        stage.client.apply(stage.world, again.model_copy(update={"reason": "other"}), live=True)
    stage.client.abort(stage.world, first.run_id)
