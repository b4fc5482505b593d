"""Transactions take their locks in one order, and wait for nobody who came later."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from activities.applies.status import status_of
from activities.fence.acknowledgements import SqlGatewayLeases
from activities.messages.submission import EvidenceBody, NodeValidation
from activities.storage.database import Database
from activities.storage.lock_order import LOCK_ORDER
from activities.storage.tables import ApplyRow
from activities.submissions.runs import SqlRunStore
from activities.worlds.specs import set_node_states
from tests.support import ROOT
from tests.support.admissions import begin_run, run_of
from tests.support.desk import Desk


def test_a_lock_that_is_taken_out_of_order_is_a_fault(database: Database) -> None:
    with database.write("test", bookkeeping=True) as tx:
        for name in ("world:a", "fence:a", "fence:a", "graph"):
            tx.lock(name)
        for name in ("fence:a", "world:a"):
            with pytest.raises(RuntimeError, match=f"the lock {name} is taken after graph"):
                tx.lock(name)
    with database.write("test", bookkeeping=True) as tx:
        tx.lock("fence:b")
        with pytest.raises(RuntimeError, match="the lock fence:a is taken after fence:b"):
            tx.lock("fence:a")
        tx.lock_chain("w")
        with pytest.raises(RuntimeError, match="the lock graph is taken after audit"):
            tx.lock("graph")


def test_every_lock_of_the_code_has_its_place() -> None:
    found = set()
    for path in (ROOT / "activities").rglob("*.py"):
        found |= set(re.findall(r'(?:tx|self)\.(?:lock|try_locks)\(\[?f?"([a-z_]+)', path.read_text()))
    assert {"world", "fence", "graph"} <= found
    assert found <= set(LOCK_ORDER)


def test_evidence_of_strategies_that_share_nodes_and_a_switch_do_not_deadlock(database: Database) -> None:
    """PostgreSQL gave one of them up, while the world was frozen."""
    Desk(database)
    runs, nodes = SqlRunStore(database), [f"blake3:{number:03d}" for number in range(60)]

    def save(strategy: str, order: list[str]) -> None:
        for number in range(15):
            run = f"{strategy}{number}"
            begin_run(database, run_of(run, f"strategy:{strategy}"))
            checked = [
                NodeValidation(node_id=node, execution_domain="dryrun", eval_key=f"{run}:{node}")
                for node in order
            ]
            body = EvidenceBody(run_id=run, world_id="w", strategy_id=f"strategy:{strategy}")
            runs.save_evidence(body, checked)

    def switch() -> None:
        for number in range(30):
            with database.write("apply", bookkeeping=True) as tx:
                set_node_states(tx, "w", "dryrun", tuple(nodes[::-1]), "running" if number % 2 else "stopped")

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(save, "a", nodes), pool.submit(save, "b", nodes[::-1]), pool.submit(switch)]
        for item in done:
            item.result(120)


def test_an_apply_waits_for_no_gateway_that_started_after_its_freeze(database: Database) -> None:
    desk, leases = Desk(database), SqlGatewayLeases(database)
    leases.heartbeat("gateway:first", 60)
    run = desk.request("dryrun")
    desk.freeze(run)
    leases.heartbeat("gateway:first", 60)
    leases.heartbeat("gateway:later", 60)
    with database.read() as session:
        found = status_of(session, session.get_one(ApplyRow, (desk.world, run)))
    assert [item.holder for item in found.acks] == ["gateway:first"]
