"""The global graph in the database."""

from datetime import UTC, datetime
from functools import lru_cache

from sqlmodel import Session, col, select, update

from activities.graph.diff import RECOMPUTE_AFTER, DiffPlan, plan_diff, sentinel_id
from activities.messages.submission import DiffResult, RunContextBody
from activities.queues.catalogue import publish_new_queues, register_tag_queries
from activities.queues.topics import assets_of, folded, layout_of, topic_name
from activities.storage.database import Database
from activities.storage.tables import (
    DiffRow,
    GraphEdgeRow,
    GraphNodeRow,
    GraphStrategyRow,
    QueueRow,
    SentinelRow,
)
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.errors import QmtlError

# Ids in one statement: SQLite limits the number of bound values.
_CHUNK = 500


# Strategies whose nodes are remembered.
_STRATEGIES = 200


class SqlGraphStore:
    """Nodes, edges, strategies and queues.

    `brokers`: the size of the cluster that queues are laid out for.
    """

    def __init__(self, database: Database, brokers: int = 1) -> None:
        self._database = database
        self._brokers = brokers
        self.node_ids = lru_cache(maxsize=_STRATEGIES)(self._node_ids)

    def plan(self, world_id: str, domain: str, dag: Dag) -> DiffPlan:
        """Plan what `diff` would add, without writing."""
        with self._database.read() as session:
            return _plan(session, world_id, domain, dag)

    def diff(self, tx: Transaction, run: RunContextBody, dag: Dag) -> DiffResult:
        """Add what is new in a DAG, once for a run."""
        run_id, world_id = run.run_id, run.world_id
        domain = run.context.execution_domain.value
        done = tx.session.get(DiffRow, run_id)
        if done is not None:
            return DiffResult.model_validate_json(done.body)
        strategy_id = dag.strategy_id
        tx.lock("graph")
        plan = _plan(tx.session, world_id, domain, dag)
        result = DiffResult(
            new=plan.new,
            reused=plan.reused,
            topics=plan.topics,
            sentinel_id=sentinel_id(world_id, strategy_id),
        )
        self._insert_nodes(tx, plan, dag)
        self._insert_strategy(tx, result.sentinel_id, world_id, run.name, dag)
        self._add_queues(tx, plan, world_id, domain, self._brokers)
        self._mark_recompute(tx, plan)
        tx.session.add(DiffRow(run_id=run_id, body=result.model_dump_json()))
        after = {
            "new": len(plan.new),
            "reused": len(plan.reused),
            "queues": len(plan.queues),
            "sentinel": result.sentinel_id,
        }
        data = {
            "world_id": world_id,
            "sentinel_id": result.sentinel_id,
            "strategy_id": strategy_id,
            "weight": 1.0,
            "version": strategy_id,
        }
        tx.record(
            RecordedChange(
                "graph.diff",
                world_id,
                strategy_id,
                after=after,
                correlation_id=run_id,
                event="sentinel_weight",
                about=result.sentinel_id,
                data=data,
            )
        )
        self._publish(tx, plan, world_id, domain, dag, run_id)
        return result

    def ensure_queues(self, world_id: str, domain: str, dag: Dag, actor: str) -> dict[str, str]:
        """Create the missing queues of a stored strategy in a domain. Returns NodeID → topic.

        It waits for a drop that is under way, so that of a session which was opened before none is dropped.
        """
        with self._database.write(actor, bookkeeping=True) as tx:  # nobody waits for queues without tags
            return self.bind_queues(tx, world_id, domain, dag, self._brokers)

    @staticmethod
    def bind_queues(
        tx: Transaction, world_id: str, domain: str, dag: Dag, brokers: int = 1
    ) -> dict[str, str]:
        """Do the same as `ensure_queues` within a given transaction."""
        tx.lock("graph")
        plan = _plan(tx.session, world_id, domain, dag)
        if plan.queues:
            SqlGraphStore._add_queues(tx, plan, world_id, domain, brokers)
            SqlGraphStore._publish(tx, plan, world_id, domain, dag, "")
        return plan.topics

    @staticmethod
    def _publish(
        tx: Transaction, plan: DiffPlan, world_id: str, domain: str, dag: Dag, correlation_id: str
    ) -> None:
        nodes = {node.node_id: node for node in dag.nodes}
        if plan.queues:
            publish_new_queues(
                tx,
                world_id,
                domain,
                [(nodes[queue.node_id], queue.topic) for queue in plan.queues],
                correlation_id,
            )
        register_tag_queries(tx, world_id, domain, dag.nodes, correlation_id)

    def _node_ids(self, strategy_id: str) -> frozenset[str]:
        return frozenset(node.node_id for node in self.dag(strategy_id).nodes)

    def dag(self, strategy_id: str) -> Dag:
        """Read a strategy's DAG. Raises QmtlError (E_STRATEGY_UNKNOWN)."""
        with self._database.read() as session:
            dag = stored_dag(session, strategy_id)
        if dag is None:
            raise QmtlError("E_STRATEGY_UNKNOWN", f"the graph has no {strategy_id[:80]}", "submit it first")
        return dag

    @staticmethod
    def _insert_nodes(tx: Transaction, plan: DiffPlan, dag: Dag) -> None:
        now, strategy_id = utc_now(), dag.strategy_id
        new = set(plan.new)
        nodes = {node.node_id: node for node in dag.nodes}
        tx.insert_new_values(
            table_of(GraphNodeRow),
            [
                {
                    "node_id": node.node_id,
                    "node_type": node.node_type,
                    "interval_s": node.interval,
                    "period": node.period,
                    "schema_compat_id": node.schema_compat_id,
                    "schema_hash": node.schema_hash,
                    "code_hash": node.code_hash,
                    "body": node.model_dump_json(),
                    "first_strategy": strategy_id,
                    "created_at": now,
                }
                for node in (nodes[node_id] for node_id in plan.new)
            ],
        )
        edges = sorted(edge for edge in set(dag.edges) if edge[1] in new)
        tx.insert_new_values(
            table_of(GraphEdgeRow), [{"parent": parent, "child": child} for parent, child in edges]
        )

    @staticmethod
    def _insert_strategy(tx: Transaction, sentinel: str, world_id: str, name: str, dag: Dag) -> None:
        now = utc_now()
        strategy_id = dag.strategy_id
        tx.insert_new(
            [GraphStrategyRow(strategy_id=strategy_id, name=name, dag=dag.model_dump_json(), created_at=now)]
        )
        tx.insert_new(
            [
                SentinelRow(
                    sentinel_id=sentinel,
                    world_id=world_id,
                    strategy_id=strategy_id,
                    version=strategy_id,
                    traffic_weight=1.0,
                    created_at=now,
                )
            ]
        )

    @staticmethod
    def _mark_recompute(tx: Transaction, plan: DiffPlan) -> None:
        if plan.minor:
            due = (datetime.now(UTC) + RECOMPUTE_AFTER).isoformat()
            tx.session.connection().execute(
                update(GraphNodeRow)
                .where(col(GraphNodeRow.node_id).in_(plan.minor), col(GraphNodeRow.recompute_after).is_(None))
                .values(recompute_after=due)
            )

    @staticmethod
    def _add_queues(tx: Transaction, plan: DiffPlan, world_id: str, domain: str, brokers: int) -> None:
        now = utc_now()
        inserted = tx.insert_new_values(
            table_of(QueueRow),
            [
                {
                    "topic": queue.topic,
                    "node_id": queue.node_id,
                    "world_id": world_id,
                    "execution_domain": domain,
                    "kind": queue.kind,
                    "created_at": now,
                    **layout_of(queue.kind, brokers).model_dump(),
                }
                for queue in plan.queues
            ],
        )
        # A queue that was dropped before is opened again, empty.
        topics = [queue.topic for queue in plan.queues if (queue.topic,) not in inserted]
        for start in range(0, len(topics), _CHUNK):
            dropped = (
                col(QueueRow.topic).in_(topics[start : start + _CHUNK]),
                col(QueueRow.dropped_at).is_not(None),
            )
            tx.connection.execute(
                update(QueueRow)
                .where(*dropped)
                .values(dropped_at=None, archived_at=None, archive=None, created_at=now)
            )


def stored_dag(session: Session, strategy_id: str) -> Dag | None:
    """Read a strategy's DAG; None where the graph does not have it."""
    row = session.get(GraphStrategyRow, strategy_id)
    return Dag.model_validate_json(row.dag) if row else None


def _plan(session: Session, world_id: str, domain: str, dag: Dag) -> DiffPlan:
    """Plan a diff.

    Reads only the submission's nodes, their queues, and topics that could clash with theirs.
    """
    ids = sorted(dag.node_ids)
    known: dict[str, str] = {}
    queues: dict[str, str] = {}
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        known |= {
            row[0]: row[1]
            for row in session.exec(
                select(GraphNodeRow.node_id, GraphNodeRow.schema_hash).where(
                    col(GraphNodeRow.node_id).in_(part)
                )
            )
        }
        found = select(QueueRow.node_id, QueueRow.topic).where(
            col(QueueRow.node_id).in_(part),
            QueueRow.world_id == world_id,
            QueueRow.execution_domain == domain,
            col(QueueRow.dropped_at).is_(None),
        )
        queues |= {row[0]: row[1] for row in session.exec(found)}
    return plan_diff(dag, world_id, domain, known, queues, _taken(session, world_id, domain, dag, queues))


def _taken(session: Session, world_id: str, domain: str, dag: Dag, queues: dict[str, str]) -> dict[str, str]:
    """Find the nodes that own a topic which would be the first choice for one of these nodes."""
    assets = assets_of(dag)
    first = [
        topic_name(world_id, domain, assets[node.node_id], node, {})
        for node in dag.nodes
        if node.node_id not in queues
    ]
    taken: dict[str, str] = {}
    for start in range(0, len(first), _CHUNK):
        rows = session.exec(
            select(QueueRow.topic, QueueRow.node_id).where(
                col(QueueRow.topic).in_(first[start : start + _CHUNK])
            )
        )
        taken |= {folded(topic): node_id for topic, node_id in rows}
    return taken
