"""One contract for every database.

Each write is one transaction with its audit and outbox rows, and may be repeated.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, func, text
from sqlmodel import SQLModel, select

from activities.applies.rule_changes import SqlRuleChanges
from activities.decisions.sql import SqlDecisionStore
from activities.fence.store import SqlFenceStore
from activities.graph.sql import SqlGraphStore
from activities.messages.submission import EvidenceBody, RunContextBody
from activities.queues.topics import folded
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.sqlite import SqliteDatabase
from activities.storage.tables import AuditRow, GraphEdgeRow, GraphNodeRow, OutboxRow, QueueRow, SentinelRow
from activities.storage.transactions import RecordedChange
from activities.submissions.log import SqlCommitLog
from activities.submissions.runs import SqlRunStore
from activities.worlds.policies import SqlPolicyStore
from activities.worlds.specs import SqlWorldStore
from qmtl_sdk import Node, QmtlError, Strategy, StreamInput
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck, SubmissionMeta, SubmissionOutcome
from qmtl_sdk.contracts.worlds import Execution, WorldSpec
from qmtl_sdk.nodes.strategy import BuiltStrategy
from tests.support.admissions import begin_run, diff, record_admission, run_of
from tests.support.trail import audit_trail

NOW = datetime(2024, 1, 1, tzinfo=UTC)


class Bands(Strategy):
    def __init__(self, *widths: float) -> None:
        super().__init__()
        self.widths = widths

    def setup(self) -> None:
        price = StreamInput(tags=["AAPL", "price"], interval="1d", period=20)
        self.add_nodes(
            [
                Node(price, lambda v, width=width: v[price].values * width, name=f"band {width}")
                for width in self.widths
            ]
        )


def dag(*widths: float) -> Dag:
    return BuiltStrategy(Bands(*widths)).dag


def submission(key: str, world: str = "w", found: Dag | None = None) -> StrategySubmit:
    return StrategySubmit(
        world_id=world,
        dag=found or dag(1),
        node_ids_crc32=1,
        idempotency_key=key,
        meta=SubmissionMeta(name="Bands"),
    )


def context(run: str, strategy: str = "strategy:s") -> RunContextBody:
    return run_of(run, strategy)


def ack(run: str) -> SubmissionAck:
    return SubmissionAck(
        world_id="w",
        strategy_id="s",
        workflow_id="x",
        run_id=run,
        queue_map={},
        nodes_new=1,
        nodes_reused=0,
        sentinel_id="t",
        context=context(run).context,
        bindings=(),
        execution=Execution(),
    )


def envelope(active: bool = True, version: int = 1) -> DecisionEnvelope:
    mine = StrategyDecision(
        strategy_id="strategy:s", active=active, weight=1.0 if active else 0.0, rank=1 if active else None
    )
    return DecisionEnvelope(
        world_id="w",
        policy_version=version,
        effective_mode="validate",
        reason="r",
        as_of=NOW,
        decided_at=NOW,
        etag=f"e{active}",
        strategies=(mine,),
    )


def counts(database: Database) -> tuple[int, int]:
    with database.read() as session:
        return tuple(
            session.exec(select(func.count()).select_from(table)).one() for table in (AuditRow, OutboxRow)
        )  # type: ignore[return-value]


def written_once(database: Database, write: Callable[[], Any], rows: int = 1) -> None:
    """Writing it twice leaves `rows` audit rows and as many outbox rows, and gives the same answer."""
    before = counts(database)
    first, second = write(), write()
    after = counts(database)
    assert first == second
    assert (after[0] - before[0], after[1] - before[1]) == (rows, rows)


@dataclass(frozen=True)
class WorldStores:
    """The stores that together hold a world."""

    fence: SqlFenceStore
    worlds: SqlWorldStore
    policies: SqlPolicyStore
    rules: SqlRuleChanges
    runs: SqlRunStore
    decisions: SqlDecisionStore


def stores_over(database: Database) -> WorldStores:
    return WorldStores(
        SqlFenceStore(database),
        SqlWorldStore(database),
        SqlPolicyStore(database),
        SqlRuleChanges(database),
        SqlRunStore(database),
        SqlDecisionStore(database),
    )


def world(database: Database, name: str = "w") -> WorldStores:
    store = stores_over(database)
    store.fence.create(WorldSpec(world=name), policy_from({"preset": "sandbox"}), "me")
    return store


def test_every_write_is_done_once_and_leaves_its_audit_and_outbox_row(database: Database) -> None:
    """Traps 3, 6 and 17."""
    log, worlds = SqlCommitLog(database), stores_over(database)
    written_once(
        database, lambda: worlds.fence.create(WorldSpec(world="w"), policy_from({"preset": "sandbox"}), "me")
    )
    written_once(database, lambda: log.append(submission("key-00000001"), "me"))
    written_once(
        database, lambda: diff(database, "run", "w", "Bands", dag(1, 2)), rows=2
    )  # the sentinel, and the queues with tags
    written_once(database, lambda: begin_run(database, context("run")))
    written_once(database, lambda: record_admission(database, "key-00000001", "run", ack("run")))
    written_once(
        database,
        lambda: worlds.runs.save_evidence(
            EvidenceBody(run_id="run", world_id="w", strategy_id="strategy:s", metrics={"sharpe": 1.0})
        ),
    )
    written_once(
        database, lambda: worlds.decisions.save_decision(("r1", "r2"), envelope(), "eval"), rows=2
    )  # the decision and the activation
    written_once(
        database,
        lambda: worlds.runs.save_outcome(
            SubmissionOutcome(world_id="w", strategy_id="strategy:s", run_id="run", status="decided")
        ),
    )


def test_a_transaction_that_records_nothing_is_rolled_back(database: Database) -> None:
    with pytest.raises(RuntimeError, match="without a record"), database.write("me") as tx:
        tx.insert_new([GraphEdgeRow(parent="a", child="b")])
    with database.read() as session:
        assert session.exec(select(GraphEdgeRow)).all() == []


def test_what_changed_is_held_before_the_head_of_its_chain(database: Database) -> None:
    touched = list[str]()
    event.listen(
        database._engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: touched.extend(
            name for name in ("graph_edge", "audit_head") if name in statement
        ),
    )
    with database.write("me") as tx:
        tx.session.add(GraphEdgeRow(parent="a", child="b"))
        tx.record(RecordedChange("edge.added", "w", "a"))
    assert touched[:2] == ["graph_edge", "audit_head"]


def test_a_read_that_changes_the_store_is_rolled_back(database: Database) -> None:
    with pytest.raises(RuntimeError, match="a read changed"), database.read() as session:
        session.add(GraphEdgeRow(parent="a", child="b"))
        session.flush()
    with database.read() as session:
        assert session.exec(select(GraphEdgeRow)).all() == []


@pytest.mark.parametrize("dsn", ["postgres"], indirect=True)
def test_a_statement_stays_prepared_from_one_look_to_the_next(database: Database) -> None:
    for _ in range(10):
        with database.read() as session:
            session.exec(select(GraphEdgeRow)).all()
    with database.read() as session:
        prepared = (
            session.connection().execute(text("SELECT statement FROM pg_prepared_statements")).scalars().all()
        )
    assert any("FROM graph_edge" in statement for statement in prepared)


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    before = counts(database)
    with pytest.raises(ZeroDivisionError), database.write("me") as tx:
        tx.insert_new([GraphEdgeRow(parent="a", child="b")])
        tx.record(RecordedChange("x", "w", "s"))
        _ = 1 / 0
    assert counts(database) == before
    with database.read() as session:
        assert session.exec(select(GraphEdgeRow)).all() == []


def test_a_key_with_another_body_is_refused(database: Database) -> None:
    """Trap 6: the same key with another body got the earlier answer."""
    log = SqlCommitLog(database)
    log.append(submission("key-00000001"), "me")
    with pytest.raises(QmtlError, match="E_IDEMPOTENCY_KEY_REUSED"):
        log.append(submission("key-00000001", found=dag(2)), "me")


def test_the_log_knows_what_waits_and_what_was_answered(database: Database) -> None:
    log = SqlCommitLog(database)
    for key in ("key-00000001", "key-00000002", "key-00000003"):
        log.append(submission(key), "me")
    record_admission(database, "key-00000001", "run", ack("run"))
    log.refuse("key-00000002", "E_WORLD_UNKNOWN")
    record_admission(database, "key-00000001", "another", ack("another"))
    assert log.waiting(10) == ["key-00000003"]
    answered = log.append(submission("key-00000001"), "me")
    assert answered.run_id == "run"
    assert answered.ack is not None
    assert answered.ack.run_id == "run"
    refused = log.append(submission("key-00000002"), "me")
    assert refused is not None
    assert refused.refused == "E_WORLD_UNKNOWN"


def test_a_diff_adds_what_is_new_and_reuses_the_rest(database: Database) -> None:
    first = diff(database, "run1", "w", "A", dag(1, 2))
    second = diff(database, "run2", "w", "B", dag(2, 3))
    assert (len(first.new), len(first.reused)) == (3, 0)
    assert (len(second.new), len(second.reused)) == (1, 2)
    shared = set(first.topics) & set(second.topics)
    assert len(shared) == 2
    assert all(first.topics[node] == second.topics[node] for node in shared)


def test_a_second_world_reuses_every_node_with_queues_of_its_own(database: Database) -> None:
    """Trap 2: the same DAG sent to a second world was refused as a duplicate."""
    first = diff(database, "run1", "w", "A", dag(1, 2))
    second = diff(database, "run2", "v", "A", dag(1, 2))
    assert second.new == ()
    assert len(second.reused) == 3
    assert not set(first.topics.values()) & set(second.topics.values())
    assert all(topic.startswith("v.backtest.aapl_") for topic in second.topics.values())
    assert first.sentinel_id != second.sentinel_id


def test_a_minor_schema_change_marks_the_node_for_a_recompute(database: Database) -> None:
    before = dag(1)
    diff(database, "run1", "w", "A", before)
    nodes = tuple(
        node.model_copy(update={"schema_hash": "blake3:new"}) if node.inputs else node
        for node in before.nodes
    )
    after = diff(database, "run2", "w", "A", before.model_copy(update={"nodes": nodes}))
    assert after.new == ()
    with database.read() as session:
        marked = session.exec(select(GraphNodeRow).where(GraphNodeRow.recompute_after != None)).all()  # noqa: E711
    assert [node.node_type for node in marked] == ["Node"]


def test_a_plan_says_what_a_diff_would_do_and_writes_nothing(database: Database) -> None:
    graph = SqlGraphStore(database)
    before = counts(database)
    plan = graph.plan("w", "backtest", dag(1))
    assert counts(database) == before
    done = diff(database, "run1", "w", "A", dag(1))
    assert (plan.new, plan.topics) == (done.new, done.topics)


def test_topics_that_a_broker_would_mix_up_stay_apart(database: Database) -> None:
    found = dag(1)
    node = found.nodes[-1]
    digest = node.node_id.removeprefix("blake3:")
    clash = f"w.backtest.aapl_node_{digest[:8]}_v1"
    with database.write("me") as tx:
        tx.session.add(
            QueueRow(
                topic=clash,
                node_id="blake3:other",
                world_id="w",
                execution_domain="backtest",
                kind="indicator",
                partitions=1,
                retention_days=1,
                replication=1,
                created_at="now",
            )
        )
        tx.record(RecordedChange("x", "w", "s"))
    topic = diff(database, "run", "w", "A", found).topics[node.node_id]
    assert topic == f"w.backtest.aapl_node_{digest[:10]}_v1"
    assert folded(topic) != folded(clash)


def test_submissions_at_once_make_each_node_and_queue_once(database: Database) -> None:
    dags = [dag(*range(i, i + 6)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: diff(database, f"run{i}", "w", "A", dags[i]), range(8)))
    claimed = [node for result in results for node in result.new]
    assert len(claimed) == len(set(claimed)) == 14
    with database.read() as session:
        assert session.exec(select(func.count()).select_from(GraphNodeRow)).one() == 14
        assert session.exec(select(func.count()).select_from(QueueRow)).one() == 14
        assert session.exec(select(func.count()).select_from(SentinelRow)).one() == 8


def test_one_diff_requested_at_once_is_done_once(database: Database) -> None:
    found = dag(1, 2)

    def once(_: int) -> object:
        try:
            return diff(database, "run", "w", "A", found)
        except Exception:  # of two at once one may lose; the workflow's retry finds the winner's answer
            return diff(database, "run", "w", "A", found)

    with ThreadPoolExecutor(4) as pool:
        assert len({str(result) for result in pool.map(once, range(4))}) == 1


def test_worlds_are_found_as_they_were_made(database: Database) -> None:
    store = world(database)
    assert (
        store.fence.create(WorldSpec(world="w"), policy_from({"preset": "sandbox"}), "me").policy_version == 1
    )
    with pytest.raises(QmtlError, match="E_WORLD_EXISTS"):
        store.fence.create(WorldSpec(world="w", description="another"), None, "me")
    with pytest.raises(QmtlError, match="did you mean"):
        SqlWorldStore(database).world("ww")
    store.fence.create(WorldSpec(world="x"), None, "me")
    with pytest.raises(QmtlError, match="E_POLICY_MISSING"):
        store.policies.policy("x")
    assert [item.spec.world for item in store.worlds.worlds()] == ["w", "x"]


def test_policies_have_versions_and_the_newest_is_the_default(database: Database) -> None:
    store = world(database)
    assert store.rules.add_policy("w", policy_from({"preset": "moderate"}), "me").version == 2
    assert store.policies.policy("w").preset == "moderate"
    assert store.policies.policy("w", 1).preset == "sandbox"
    with pytest.raises(QmtlError, match="the next one of w is 3"):
        store.rules.add_policy("w", policy_from({"preset": "moderate", "version": 2}), "me")
    with pytest.raises(QmtlError, match="E_POLICY_UNKNOWN"):
        store.policies.policy("w", 9)
    assert [item.version for item in store.policies.policies("w")] == [1, 2]


def test_policies_added_at_once_get_versions_of_their_own(database: Database) -> None:
    store = world(database)
    with ThreadPoolExecutor(8) as pool:
        versions = list(
            pool.map(
                lambda _: store.rules.add_policy("w", policy_from({"preset": "sandbox"}), "me").version,
                range(40),
            )
        )
    assert sorted(versions) == list(range(2, 42))  # type: ignore[type-var]


def test_what_is_recorded_at_once_makes_one_chain(database: Database) -> None:
    """From the first entry on, whoever writes it."""

    def write(writer: int) -> None:
        for number in range(30):
            with database.write(f"writer{writer}") as tx:
                tx.record(RecordedChange("test.told", f"world{number % 10}", "first"))
                tx.record(RecordedChange("test.told", f"world{number % 10}", "second"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert [audit_trail(database).verify(f"world{number}")[0] for number in range(10)] == [48] * 10


def test_the_newest_evidence_of_each_strategy_is_judged(database: Database) -> None:
    store = world(database)
    for run, strategy, sharpe in (
        ("r1", "strategy:a", 1.0),
        ("r2", "strategy:b", 2.0),
        ("r3", "strategy:a", 3.0),
    ):
        begin_run(database, context(run, strategy))
        store.runs.save_evidence(
            EvidenceBody(run_id=run, world_id="w", strategy_id=strategy, metrics={"sharpe": sharpe})
        )
    begin_run(database, context("r4", "strategy:waiting"))
    found = store.decisions.candidates("w", datetime.now(UTC))
    assert [(item.strategy_id, item.metrics["sharpe"]) for item in found] == [
        ("strategy:a", 3.0),
        ("strategy:b", 2.0),
    ]


def test_a_request_keeps_its_decision(database: Database) -> None:
    store = world(database)
    first = store.decisions.save_decision(("a",), envelope(), "eval")
    second = store.decisions.save_decision(("a", "b"), envelope(False), "eval")
    answered = store.decisions.answered(("a", "b", "c"))
    assert {name: judged.seq for name, judged in answered.items()} == {"a": first.seq, "b": second.seq}
    assert answered["a"].envelope == envelope()
    assert store.decisions.decision("w") == envelope(False)
    assert [item.active for item in store.fence.activations("w")] == [False]


def test_an_activation_is_written_when_it_changes_and_not_otherwise(database: Database) -> None:
    store = world(database)
    store.decisions.save_decision(("a",), envelope(), "eval")
    before = counts(database)[0]
    store.decisions.save_decision(("b",), envelope(), "eval")
    assert counts(database)[0] == before + 1
    store.decisions.save_decision(("c",), envelope(False), "eval")
    assert counts(database)[0] == before + 3


def test_the_tables_are_what_the_migrations_make(database: Database) -> None:
    with database.read() as session:
        assert compare_metadata(MigrationContext.configure(session.connection()), SQLModel.metadata) == []


@pytest.mark.parametrize("version", ["schema_9999", "0001", "0004"])
def test_a_database_that_is_newer_than_the_code_or_from_before_the_first_release_is_refused(
    dsn: str, version: str
) -> None:
    first = open_database(dsn)
    with first.write("me") as tx:
        tx.session.connection().execute(
            text("UPDATE alembic_version SET version_num = :version"), {"version": version}
        )
        tx.record(RecordedChange("x", "w", "s"))
    first.close()
    with pytest.raises(QmtlError, match=f"version {version}") as caught:
        open_database(dsn)
    assert caught.value.code == "E_DATABASE_NEWER"


def test_processes_that_start_at_once_share_one_identity(dsn: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_database(dsn), range(4)))
    assert len({database.store_id for database in found}) == 1
    for database in found:
        database.close()


def test_a_writer_does_not_starve_behind_busy_ones(database: Database) -> None:
    stop, waits = threading.Event(), []

    def busy() -> None:
        while not stop.is_set():
            with database.write("busy") as tx:
                tx.record(RecordedChange("x", "w", "s"))

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            began = time.perf_counter()
            with database.write("me") as tx:
                tx.record(RecordedChange("y", "w", "s"))
            waits.append(time.perf_counter() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert max(waits) < 5


def test_an_unreachable_database_is_said_in_one_line(tmp_path: object) -> None:
    with pytest.raises(QmtlError, match="E_CONFIG"):
        open_database("mysql://x")
    with pytest.raises(QmtlError, match="can't be reached") as caught:
        open_database("postgresql://nobody@127.0.0.1:1/none")
    assert caught.value.code == "E_UNAVAILABLE"
    assert "\n" not in str(caught.value)


def test_the_turnstile_is_sqlites(database: Database) -> None:
    with database.queue():
        assert isinstance(database, SqliteDatabase) == (type(database).queue is not Database.queue)
