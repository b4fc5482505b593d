"""The catalogue of queues, by topic and by tag, and the tag queries whose results change with it."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlmodel import Session, col, func, select

from activities.storage.database import Database
from activities.storage.tables import GraphNodeRow, QueueRow, QueueTagRow, TagQueryRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.dag import TAG_QUERY, NodeRecord
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueInfo

# Values in one statement: databases limit the number of bound values.
_CHUNK = 500

# Tags, sorted, and an interval (seconds).
_Group = tuple[tuple[str, ...], int]


@dataclass(frozen=True, slots=True)
class QueueQuery:
    """Selects queues of a world and domain with this interval (seconds) and any or all of the tags."""

    tags: tuple[str, ...]
    interval: int
    match_mode: str
    world_id: str
    domain: str

    @classmethod
    def of(cls, row: TagQueryRow) -> "QueueQuery":
        """Convert a stored tag query."""
        return cls(
            tuple(json.loads(row.tags)), row.interval_s, row.match_mode, row.world_id, row.execution_domain
        )

    def matches(self, tags: Sequence[str], interval: int) -> bool:
        """Check whether a queue with these tags and this interval is selected."""
        if interval != self.interval:
            return False
        if self.match_mode == "all":
            return set(self.tags) <= set(tags)
        return bool(set(self.tags) & set(tags))


class SqlQueueCatalogue:
    """Finds queues."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def by_tag(
        self, tags: Sequence[str], interval: int, match_mode: str, world_id: str, domain: str
    ) -> list[QueueInfo]:
        """List the queues of a world and domain that have the tags and the interval, oldest first."""
        with self._database.read() as session:
            return _find(session, QueueQuery(tuple(tags), interval, match_mode, world_id, domain))

    def find(self, topic: str) -> QueueRow:
        """Read one queue. Raises QmtlError (E_QUEUE_UNKNOWN), also where it was dropped."""
        with self._database.read() as session:
            row = session.get(QueueRow, topic)
        if row is None or row.dropped_at is not None:
            raise QmtlError(
                "E_QUEUE_UNKNOWN", f"there is no queue {topic[:120]!r}", "GET /queues/by_tag finds queues"
            )
        return row


def publish_new_queues(
    tx: Transaction,
    world_id: str,
    domain: str,
    nodes: Sequence[tuple[NodeRecord, str]],
    correlation_id: str,
) -> None:
    """Add new queues (node, topic) to the catalogue, and publish the changes.

    One `queue_updated` event for each set of tags and interval, and one `tagquery.upsert` event for each
    stored tag query that now finds more. A queue without tags is in no event, since nothing finds it: it is
    in the queue map of whoever writes it.
    """
    tx.insert_new(
        [
            QueueTagRow(topic=topic, tag=tag, world_id=world_id, execution_domain=domain)
            for node, topic in nodes
            for tag in sorted(set(node.tags))
        ]
    )
    tx.session.flush()
    groups: dict[tuple[tuple[str, ...], int], list[str]] = defaultdict(list)
    for node, topic in nodes:
        if not node.tags:
            continue
        groups[(tuple(sorted(set(node.tags))), node.interval)].append(topic)
    known = _find_exactly(tx.session, world_id, domain, groups)
    for (tags, interval), topics in sorted(groups.items()):
        query = QueueQuery(tags, interval, "all", world_id, domain)
        queues = known[tags, interval]
        # One that came back under other tags still has its old ones.
        listed = {queue.topic for queue in queues}
        queues += [
            _new_queue_info(node, topic) for node, topic in nodes if topic in topics and topic not in listed
        ]
        subject = f"{domain}:{interval}:{'+'.join(tags)}"
        _publish(tx, "queue_updated", subject, query, queues, correlation_id)
    for row in _tag_queries(tx.session, world_id, domain):
        if any(QueueQuery.of(row).matches(tags, interval) for tags, interval in groups):
            _publish_result(tx, row, correlation_id)


def register_tag_queries(
    tx: Transaction, world_id: str, domain: str, nodes: Sequence[NodeRecord], correlation_id: str
) -> None:
    """Store the tag queries among these nodes, and publish the result of each new one."""
    for node in nodes:
        if node.node_type != TAG_QUERY:
            continue
        row = TagQueryRow(
            world_id=world_id,
            execution_domain=domain,
            node_id=node.node_id,
            tags=json.dumps(sorted(node.params.get("query_tags", ()))),
            interval_s=node.interval,
            match_mode=str(node.params.get("match_mode", "any")),
            created_at=utc_now(),
        )
        if tx.insert_new([row]):
            _publish_result(tx, row, correlation_id)


def publish_dropped_queue(tx: Transaction, queue: QueueRow) -> None:
    """Publish what is left without a dropped queue: of its tags, and of the tag queries that found it."""
    tags = sorted(set(tx.session.exec(select(QueueTagRow.tag).where(QueueTagRow.topic == queue.topic))))
    node = tx.session.get(GraphNodeRow, queue.node_id)
    if node is not None and tags:
        query = QueueQuery(tuple(tags), node.interval_s, "all", queue.world_id, queue.execution_domain)
        group = (query.tags, query.interval)
        left = _find_exactly(tx.session, query.world_id, query.domain, [group])[group]
        subject = f"{query.domain}:{query.interval}:{'+'.join(tags)}"
        _publish(tx, "queue_updated", subject, query, left, "")
    for row in _tag_queries(tx.session, queue.world_id, queue.execution_domain):
        if node is not None and QueueQuery.of(row).matches(tags, node.interval_s):
            _publish_result(tx, row, "")


def _tag_queries(session: Session, world_id: str, domain: str) -> list[TagQueryRow]:
    stored = select(TagQueryRow).where(
        TagQueryRow.world_id == world_id, TagQueryRow.execution_domain == domain
    )
    return list(session.exec(stored))


def _publish_result(tx: Transaction, row: TagQueryRow, correlation_id: str) -> None:
    query = QueueQuery.of(row)
    subject = f"{query.domain}:{query.interval}:{query.match_mode}:{'+'.join(query.tags)}"
    _publish(tx, "tagquery.upsert", subject, query, _find(tx.session, query), correlation_id)


def _find(session: Session, query: QueueQuery) -> list[QueueInfo]:
    """List the queues that a query selects, oldest first."""
    tags = set(query.tags)
    required = len(tags) if query.match_mode == "all" else 1
    with_tags = (
        select(QueueTagRow.topic)
        .where(
            QueueTagRow.world_id == query.world_id,
            QueueTagRow.execution_domain == query.domain,
            col(QueueTagRow.tag).in_(tags),
        )
        .group_by(col(QueueTagRow.topic))
        .having(func.count() >= required)
    )
    statement = (
        select(QueueRow, GraphNodeRow)
        .where(col(QueueRow.topic).in_(with_tags), col(QueueRow.dropped_at).is_(None))
        .where(GraphNodeRow.node_id == QueueRow.node_id, GraphNodeRow.interval_s == query.interval)
        .order_by(col(QueueRow.created_at), col(QueueRow.topic))
    )
    found = {queue.topic: (queue, node) for queue, node in session.exec(statement)}
    labels = _labels(session, list(found))
    return [_info(*found[topic], labels[topic]) for topic in found]


def _find_exactly(
    session: Session, world_id: str, domain: str, groups: Collection[_Group]
) -> dict[_Group, list[QueueInfo]]:
    """List the queues that have exactly the tags and the interval of each group, oldest first.

    Each group's queues are looked up by its rarest tag: a tag that all groups share finds every queue of the
    world.
    """
    uses = Counter(tag for tags, _ in groups for tag in tags)
    rarest = sorted({min(tags, key=lambda tag: (uses[tag], tag)) for tags, _ in groups})
    found: dict[str, tuple[QueueRow, GraphNodeRow]] = {}
    for start in range(0, len(rarest), _CHUNK):
        tagged = select(QueueTagRow.topic).where(
            QueueTagRow.world_id == world_id,
            QueueTagRow.execution_domain == domain,
            col(QueueTagRow.tag).in_(rarest[start : start + _CHUNK]),
        )
        statement = select(QueueRow, GraphNodeRow).where(
            col(QueueRow.topic).in_(tagged),
            QueueRow.world_id == world_id,
            QueueRow.execution_domain == domain,
            col(QueueRow.dropped_at).is_(None),
            GraphNodeRow.node_id == QueueRow.node_id,
        )
        found |= {queue.topic: (queue, node) for queue, node in session.exec(statement)}
    labels = _labels(session, list(found))
    listed: dict[_Group, list[QueueInfo]] = {group: [] for group in groups}
    for topic, (queue, node) in sorted(found.items(), key=lambda item: (item[1][0].created_at, item[0])):
        if (labels[topic], node.interval_s) in listed:
            listed[labels[topic], node.interval_s].append(_info(queue, node, labels[topic]))
    return listed


def _labels(session: Session, topics: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the tags of each queue, sorted here, since databases sort texts in different ways."""
    labels: dict[str, list[str]] = defaultdict(list)
    for start in range(0, len(topics), _CHUNK):
        part = topics[start : start + _CHUNK]
        for row in session.exec(select(QueueTagRow).where(col(QueueTagRow.topic).in_(part))):
            labels[row.topic].append(row.tag)
    return {topic: tuple(sorted(tags)) for topic, tags in labels.items()}


def _publish(
    tx: Transaction,
    event: str,
    subject: str,
    query: QueueQuery,
    queues: Sequence[QueueInfo],
    correlation_id: str,
) -> None:
    listed = [
        {"queue": queue.topic, "node_id": queue.node_id, "name": queue.name, "global": False}
        for queue in queues
    ]
    data = {
        "tags": list(query.tags),
        "interval": query.interval,
        "queues": listed,
        "match_mode": query.match_mode,
        "world_id": query.world_id,
        "execution_domain": query.domain,
        "version": len(listed),
    }
    tx.record(
        RecordedChange(
            event.replace("_", "."),
            query.world_id,
            subject,
            after={"queues": len(listed)},
            correlation_id=correlation_id,
            event=event,
            data=data,
        )
    )


def _new_queue_info(node: NodeRecord, topic: str) -> QueueInfo:
    """Describe a new queue for an event, which reads only topic, node and name."""
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
