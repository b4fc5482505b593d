"""The steps of an apply, and approvals, on a real database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

import pytest

from activities.messages.apply import DirectApproval
from activities.storage.database import Database
from activities.storage.tables import GraphStrategyRow
from activities.storage.transactions import RecordedChange, utc_now
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.applies import ApplyRequest, ApprovalBody
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import diff
from tests.support.desk import Desk, policy
from tests.support.strategies import Trend
from tests.support.trail import audit_trail


def test_a_switch_that_was_refused_is_not_done_after_its_world_was_restored(database: Database) -> None:
    desk = Desk(database)
    desk.apply("dryrun")
    run = desk.request("live")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    desk.rules.update_world(desk.world, WorldUpdate(allow_live=False), "olga")
    with pytest.raises(QmtlError, match="E_LIVE_NOT_ALLOWED"):
        desk.steps.switch(desk.world, run)
    desk.steps.restore(desk.world, run)
    desk.rules.update_world(desk.world, WorldUpdate(allow_live=True), "olga")
    with pytest.raises(QmtlError, match="E_APPLY_RESTORED"):
        desk.steps.switch(desk.world, run)
    desk.steps.conclude(desk.world, run, "frozen", "the switch was refused")
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]
    fence = desk.fence_row()
    assert (fence.state, fence.holder, fence.live_edge) == ("draining", run, False)


def test_the_time_limit_of_the_approvals_is_that_of_the_first_wait(database: Database) -> None:
    """It began anew with each run of the workflow."""
    desk = Desk(database)
    run, first = desk.request("dryrun"), datetime(2030, 1, 1, tzinfo=UTC)
    assert desk.steps.await_approval(desk.world, run, first).until == first
    assert desk.steps.await_approval(desk.world, run, first + timedelta(days=1)).until == first


def test_a_rejection_is_audited_as_one(database: Database) -> None:
    """The audit trail said `approval.given` of it."""
    desk = Desk(database)
    run = desk.request("dryrun")
    for verdict in ("approve", "reject"):
        desk.approvals.record(desk.world, run, "ana", verdict, ApprovalBody())
    trail = [entry.action for entry in audit_trail(database).page(desk.world, 0, 1000).entries]
    assert [action for action in trail if action.startswith("approval.")] == [
        "approval.given",
        "approval.rejected",
    ]


def test_an_apply_that_was_rolled_back_does_not_switch(database: Database) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    opened = desk.steps.unfreeze(desk.world, run)
    with pytest.raises(QmtlError, match="E_APPLY_RESTORED"):
        desk.steps.switch(desk.world, run)
    assert desk.steps.unfreeze(desk.world, run) == opened
    desk.steps.conclude(desk.world, run, "rolled_back", "aborted")
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["validate"]
    desk.apply("dryrun")
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]


def test_an_apply_that_switched_answers_its_switch_again_after_the_unfreeze(database: Database) -> None:
    desk = Desk(database)
    run = desk.request("dryrun")
    desk.freeze(run)
    for step in (desk.steps.drain, desk.steps.switch, desk.steps.unfreeze):
        step(desk.world, run)
    epoch = desk.epoch
    desk.steps.switch(desk.world, run)
    assert desk.epoch == epoch
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"]


def test_a_direct_signal_with_a_null_character_is_stored_without_it(database: Database) -> None:
    desk = Desk(database)
    signal = DirectApproval(
        store_id=database.store_id,
        world_id=desk.world,
        run_id=desk.request("dryrun"),
        approval_id="direct:1",
        actor="an\0a",
        verdict="reject",
        reason="n\0o",
    )
    stored = desk.approvals.record_direct(signal)
    assert (stored.actor, stored.reason, stored.via) == ("ana", "no", "direct")
    assert desk.approvals.record_direct(signal) == stored
    assert desk.approvals.read(desk.world, signal.run_id) == (stored,)


def test_a_world_that_changes_while_an_apply_is_planned(database: Database) -> None:
    """No order of any world waits for a plan with SQLite, so another writer may come between."""
    desk = Desk(database)
    world, asked = desk.world, ApplyRequest(run_id="run-1", to="dryrun")

    def refused(meanwhile: Callable[[], object]) -> str:
        with pytest.raises(QmtlError) as caught:
            desk.requests.request(world, asked, "olga", lambda _: meanwhile() and None)
        return caught.value.code

    archived, active = (WorldUpdate(state=state) for state in ("archived", "active"))
    assert refused(lambda: desk.rules.update_world(world, archived, "olga")) == "E_WORLD_ARCHIVED"
    desk.rules.update_world(world, active, "olga")
    desk.steps.resume(world, "olga", "")
    with pytest.raises(QmtlError, match="E_APPLY_UNKNOWN"):
        desk.requests.find(world, "run-1")
    assert refused(lambda: desk.request(run_id="run-2", to="dryrun")) == "E_APPLY_RUNNING"
    desk.steps.conclude(world, "run-2", "rolled_back", "aborted")
    weights = {desk.strategies[0]: 0.4}
    assert refused(lambda: desk.request("dryrun", "run-1", weights=weights)) == "E_RUN_ID_REUSED"


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [("allow_live", "E_LIVE_NOT_ALLOWED"), ("decision", ""), ("policy", ""), ("edge", "")],
)
def test_an_apply_is_planned_again_where_its_world_changed_meanwhile(
    database: Database, changes: str, refusal: str
) -> None:
    desk = Desk(database)
    desk.apply("dryrun")
    closed = EdgeOverride(src="domain:backtest", dst="domain:live", active=False)
    change: dict[str, Callable[[], object]] = {
        "allow_live": lambda: desk.rules.update_world(desk.world, WorldUpdate(allow_live=False), "olga"),
        "decision": lambda: (desk.evidence(desk.strategies[0], -3.0), desk.decide()),
        "policy": lambda: desk.rules.add_policy(desk.world, policy(), "olga"),
        "edge": lambda: desk.fence.override(desk.world, closed, "olga"),
    }
    plans: list[ApplyPlan] = []

    def check(plan: ApplyPlan) -> None:
        plans.append(plan)
        if len(plans) == 1:
            change[changes]()

    with pytest.raises(QmtlError, match=refusal) if refusal else nullcontext():
        desk.requests.request(desk.world, ApplyRequest(run_id="run-1", to="live"), "olga", check)
    if refusal:
        with pytest.raises(QmtlError, match="E_APPLY_UNKNOWN"):
            desk.requests.find(desk.world, "run-1")
    else:
        assert desk.requests.find(desk.world, "run-1").plan == plans[1]
        desk.freeze("run-1")


def test_an_apply_on_evidence_that_came_meanwhile_is_not_carried_out(database: Database) -> None:
    desk = Desk(database)

    def evidence(_: object) -> None:
        desk.evidence(desk.strategies[0], 3.0)

    desk.requests.request(desk.world, ApplyRequest(run_id="run-1", to="dryrun"), "olga", evidence)
    with pytest.raises(QmtlError, match="E_ETAG"):
        desk.freeze("run-1")


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_recorded_change_locks_no_audit_chain_before_its_commit(database: Database) -> None:
    """If it did, a switch that holds the graph and an admission that waits for it would end in a deadlock."""
    desk = Desk(database)
    dag = BuiltStrategy(Trend("KO")).dag
    desk.strategies.append(dag.strategy_id)
    diff(database, "r", desk.world, "Trend", dag)
    desk.evidence(dag.strategy_id)
    desk.decide()
    run = desk.request("dryrun")
    desk.freeze(run)
    desk.steps.drain(desk.world, run)
    with ThreadPoolExecutor(1) as pool, database.write("admission") as tx:
        tx.record(RecordedChange("graph.diff", desk.world, "admitted"))
        pool.submit(desk.steps.switch, desk.world, run).result(30)
        tx.lock("graph")
    assert [item.effective_mode for item in desk.fence.activations(desk.world)] == ["paper"] * 2


def test_strategies_that_share_nodes_are_promoted_and_weighted_together(database: Database) -> None:
    """The rows of a node that one change adds are those that the next one finds."""
    desk = Desk(database, strategies=2)
    dag = BuiltStrategy(Trend()).dag
    body, now = dag.model_dump_json(), utc_now()
    rows = [GraphStrategyRow(strategy_id=id_, name="S", dag=body, created_at=now) for id_ in desk.strategies]
    with database.write("test", bookkeeping=True) as tx:
        tx.insert_new(rows)
    for weights in ({}, {desk.strategies[0]: 0.2, desk.strategies[1]: 0.3}):
        desk.apply("dryrun", weights=weights)
        found = SqlWorldStore(database).nodes(desk.world, "dryrun")
        assert {item.node_id: item.state for item in found} == dict.fromkeys(dag.node_ids, "running")
