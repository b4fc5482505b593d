"""Which queues there are, by topic and by tag; and the tag queries that want to hear of new ones."""

import json
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from sqlmodel import Session, col, select

from activities.storage.database import Database
from activities.storage.tables import GraphNodeRow, QueueRow, QueueTagRow, TagQueryRow
from activities.storage.transactions import Transaction, utc_now
from qmtl_sdk.contracts.dag import TAG_QUERY, NodeRecord
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueInfo


class SqlQueueCatalogue:
    def __init__(self, database: Database) -> None:
        self._database = database

    def by_tag(
        self, tags: Sequence[str], interval: int, match_mode: str, world_id: str, domain: str
    ) -> list[QueueInfo]:
        with self._database.read() as session:
            return matching(session, tags, interval, match_mode, world_id, domain)

    def find(self, topic: str) -> QueueRow:
        """Raises QmtlError (E_QUEUE_UNKNOWN), also where it was dropped."""
        with self._database.read() as session:
            row = session.get(QueueRow, topic)
        if row is None or row.dropped_at is not None:
            raise QmtlError(
                "E_QUEUE_UNKNOWN", f"there is no queue {topic[:120]!r}", "GET /queues/by_tag finds queues"
            )
        return row


def announce(
    tx: Transaction,
    world_id: str,
    domain: str,
    nodes: Sequence[tuple[NodeRecord, str]],
    strategy_id: str,
    correlation_id: str,
) -> None:
    """Put new queues (node, topic) into the catalogue and tell of them: `queue_updated` for each set of tags and interval, `tagquery.upsert` for each query that finds one more."""
    tx.insert_new(
        [QueueTagRow(tag=tag, topic=topic) for node, topic in nodes for tag in sorted(set(node.tags))]
    )
    tx.session.flush()
    groups: dict[tuple[tuple[str, ...], int], list[str]] = defaultdict(list)
    for node, topic in nodes:
        groups[(tuple(sorted(set(node.tags))), node.interval)].append(topic)
    for (tags, interval), topics in sorted(groups.items()):
        queues = [
            queue
            for queue in matching(tx.session, tags, interval, "all", world_id, domain)
            if queue.tags == tags
        ]
        queues = queues or [
            _plain(node, topic) for node, topic in nodes if topic in topics
        ]  # no query finds what has no tags
        about = f"{domain}:{interval}:{'+'.join(tags) or strategy_id}"
        _tell(tx, "queue_updated", about, tags, interval, "all", world_id, domain, queues, correlation_id)
    for query in tx.session.exec(
        select(TagQueryRow).where(TagQueryRow.world_id == world_id, TagQueryRow.execution_domain == domain)
    ):
        wanted = tuple(json.loads(query.tags))
        if any(
            _matches(tags, wanted, query.match_mode) and interval == query.interval_s
            for tags, interval in groups
        ):
            tell_query(tx, query, correlation_id)


def register(
    tx: Transaction, world_id: str, domain: str, nodes: Sequence[NodeRecord], correlation_id: str
) -> None:
    """Remember the tag queries among these nodes; each new one is told what it finds."""
    for node in nodes:
        if node.node_type != TAG_QUERY:
            continue
        tags, mode = sorted(node.params.get("query_tags", ())), str(node.params.get("match_mode", "any"))
        row = TagQueryRow(
            world_id=world_id,
            execution_domain=domain,
            node_id=node.node_id,
            tags=json.dumps(tags),
            interval_s=node.interval,
            match_mode=mode,
            created_at=utc_now(),
        )
        if tx.insert_new([row]):
            tell_query(tx, row, correlation_id)


def tell_leaving(tx: Transaction, queue: QueueRow) -> None:
    """Tell the tag queries that found a queue that it is gone."""
    tags = set(tx.session.exec(select(QueueTagRow.tag).where(QueueTagRow.topic == queue.topic)))
    node = tx.session.get(GraphNodeRow, queue.node_id)
    for query in tx.session.exec(
        select(TagQueryRow).where(
            TagQueryRow.world_id == queue.world_id, TagQueryRow.execution_domain == queue.execution_domain
        )
    ):
        if (
            node is not None
            and node.interval_s == query.interval_s
            and _matches(sorted(tags), json.loads(query.tags), query.match_mode)
        ):
            tell_query(tx, query, "")


def tell_query(tx: Transaction, query: TagQueryRow, correlation_id: str) -> None:
    tags = tuple(json.loads(query.tags))
    found = matching(
        tx.session, tags, query.interval_s, query.match_mode, query.world_id, query.execution_domain
    )
    about = f"{query.execution_domain}:{query.interval_s}:{query.match_mode}:{'+'.join(tags)}"
    _tell(
        tx,
        "tagquery.upsert",
        about,
        tags,
        query.interval_s,
        query.match_mode,
        query.world_id,
        query.execution_domain,
        found,
        correlation_id,
    )


def matching(
    session: Session, tags: Sequence[str], interval: int, match_mode: str, world_id: str, domain: str
) -> list[QueueInfo]:
    """The queues of a world and domain that have any (or all) of the tags and this interval, oldest first."""
    query = (
        select(QueueRow, GraphNodeRow, QueueTagRow.tag)
        .where(
            col(QueueTagRow.tag).in_(set(tags)),
            QueueRow.topic == QueueTagRow.topic,
            QueueRow.world_id == world_id,
            QueueRow.execution_domain == domain,
            col(QueueRow.dropped_at).is_(None),
        )
        .where(GraphNodeRow.node_id == QueueRow.node_id, GraphNodeRow.interval_s == interval)
        .order_by(col(QueueRow.created_at), col(QueueRow.topic))
    )
    found: dict[str, tuple[QueueRow, GraphNodeRow]] = {}
    hits: dict[str, set[str]] = defaultdict(set)
    for queue, node, tag in session.exec(query):
        found[queue.topic] = (queue, node)
        hits[queue.topic].add(tag)
    wanted = len(set(tags)) if match_mode == "all" else 1
    topics = [topic for topic in found if len(hits[topic]) >= wanted]
    labels: dict[str, list[str]] = defaultdict(list)
    for row in session.exec(
        select(QueueTagRow).where(col(QueueTagRow.topic).in_(topics)).order_by(col(QueueTagRow.tag))
    ):
        labels[row.topic].append(row.tag)
    return [_info(*found[topic], tuple(labels[topic])) for topic in topics]


def _matches(tags: Sequence[str], wanted: Sequence[str], match_mode: str) -> bool:
    return set(wanted) <= set(tags) if match_mode == "all" else bool(set(wanted) & set(tags))


def _tell(
    tx: Transaction,
    event: str,
    about: str,
    tags: Sequence[str],
    interval: int,
    match_mode: str,
    world_id: str,
    domain: str,
    queues: Sequence[QueueInfo],
    correlation_id: str,
) -> None:
    listed = [
        {"queue": queue.topic, "node_id": queue.node_id, "name": queue.name, "global": False}
        for queue in queues
    ]
    data = {
        "tags": list(tags),
        "interval": interval,
        "queues": listed,
        "match_mode": match_mode,
        "world_id": world_id,
        "execution_domain": domain,
        "version": len(listed),
    }
    tx.record(
        event.replace("_", ".") if "_" in event else event,
        world_id,
        about,
        after={"queues": len(listed)},
        correlation_id=correlation_id,
        event=event,
        data=data,
    )


def _plain(node: NodeRecord, topic: str) -> QueueInfo:
    return QueueInfo(
        topic=topic,
        node_id=node.node_id,
        name=node.name,
        interval=node.interval,
        tags=(),
        execution_domain="",
        created_at=datetime.fromisoformat(utc_now()),
    )


def _info(queue: QueueRow, node: GraphNodeRow, tags: tuple[str, ...]) -> QueueInfo:
    return QueueInfo(
        topic=queue.topic,
        node_id=queue.node_id,
        name=NodeRecord.model_validate_json(node.body).name,
        interval=node.interval_s,
        tags=tags,
        execution_domain=queue.execution_domain,
        created_at=datetime.fromisoformat(queue.created_at),
    )
