"""The steps of an apply, and approvals, on a real database."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.messages.apply import DirectApproval
from activities.storage.database import Database
from activities.storage.tables import GraphStrategyRow
from activities.storage.transactions import RecordedChange, utc_now
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.worlds import WorldUpdate
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import diff
from tests.support.desk import Desk
from tests.support.strategies import Trend


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
