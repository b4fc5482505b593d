"""The retention of queues: old messages are archived and removed, empty and unused queues are dropped.

1. Messages older than the retention of their queue are written as an artifact under their content hash.
2. The artifact is read back and compared with the queue, message by message. If they differ, nothing is
   removed (E_QUEUE_ARCHIVE).
3. The archive is stored with the queue and published (`queue_lifecycle`). Only then are the messages
   removed. After a crash before that they are archived again.
4. A queue that is older than its retention, and has neither messages nor a session that could fill it, is
   dropped. That is published, and so are the new results of the tag queries that found it.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlmodel import col, select

from activities.artifacts.store import ArtifactStore
from activities.messages.upkeep import RetentionResult
from activities.queues.catalogue import publish_dropped_queue
from activities.queues.store import QueueStore
from activities.storage.database import Database
from activities.storage.tables import QueueRow, SessionRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueMessage

# Queues that are read at a time.
_QUEUES = 1000

# Messages in one archive.
CHUNK = 5000


class QueueRetention:
    """Archives, trims and drops queues."""

    def __init__(self, database: Database, queues: QueueStore, artifacts: ArtifactStore) -> None:
        self._database = database
        self._queues = queues
        self._artifacts = artifacts

    def due(self, now: datetime) -> list[str]:
        """List the queues that have old messages or may be dropped."""
        return [row.topic for row in self._kept() if self._last_old(row, now) or self._idle(row, now)]

    def _kept(self) -> Iterator[QueueRow]:
        """Read the queues that were not dropped, some at a time."""
        after: str | None = ""
        while after is not None:
            query = (
                select(QueueRow)
                .where(col(QueueRow.dropped_at).is_(None), col(QueueRow.topic) > after)
                .order_by(col(QueueRow.topic))
                .limit(_QUEUES)
            )
            with self._database.read() as session:
                rows = session.exec(query).all()
            yield from rows
            after = rows[-1].topic if len(rows) == _QUEUES else None

    def apply(self, topic: str, now: datetime) -> RetentionResult:
        """Archive and remove old messages, then drop the queue if it is empty and unused.

        Raises QmtlError: E_QUEUE_ARCHIVE where the archive differs from the queue.
        """
        with self._database.read() as session:
            row = session.get(QueueRow, topic)
        if row is None or row.dropped_at is not None:
            return RetentionResult(topic=topic)
        last = self._last_old(row, now)
        archived = 0
        archive = ""
        while self._queues.bounds(topic).first <= last:
            archive, count, end = self._archive(row, last)
            archived += count
            self._queues.trim(topic, end + 1)
        dropped = self._idle(row, now) and self._drop(topic)
        return RetentionResult(topic=topic, archived=archived, archive=archive, dropped=dropped)

    def _last_old(self, row: QueueRow, now: datetime) -> int:
        """Return the sequence of the newest message beyond the retention; 0 for none."""
        return self._queues.last_before(row.topic, (now - timedelta(days=row.retention_days)).timestamp())

    def _idle(self, row: QueueRow, now: datetime) -> bool:
        bounds = self._queues.bounds(row.topic)
        old = datetime.fromisoformat(row.created_at) < now - timedelta(days=row.retention_days)
        return old and bounds.first > bounds.last

    def _archive(self, row: QueueRow, last: int) -> tuple[str, int, int]:
        """Archive a chunk of messages up to `last`.

        Returns the artifact, the number of messages, the last one.
        """
        first = self._queues.bounds(row.topic).first
        count = min(CHUNK, last - first + 1)
        messages, end = self._queues.read(row.topic, first - 1, count)
        data = encode(messages)
        digest = content_hash(data)
        self._artifacts.put(digest, data)
        current, _ = self._queues.read(row.topic, first - 1, count)
        try:
            stored = decode(self._artifacts.get(digest))
        except (QmtlError, ValueError) as error:
            raise _archive_mismatch(row.topic, digest) from error
        if stored != current or end > last:
            raise _archive_mismatch(row.topic, digest)
        with self._database.write("upkeep") as tx:
            found = tx.session.get(QueueRow, row.topic, with_for_update=True)
            assert found is not None  # queues are never deleted
            found.archived_at = utc_now()
            found.archive = digest
            tx.session.add(found)
            _publish(tx, found, "archive", digest)
        return digest, len(messages), end

    def _drop(self, topic: str) -> bool:
        """Drop a queue. Returns False where a session uses it by now, or has filled it meanwhile.

        Its messages go before the commit: a session that brings it back gets the lock of the graph only then,
        and what it appends stays.
        """
        with self._database.write("upkeep") as tx:
            tx.lock("graph")
            row = tx.session.get(QueueRow, topic, with_for_update=True)
            assert row is not None  # queues are never deleted
            running = select(SessionRow).where(
                SessionRow.world_id == row.world_id,
                SessionRow.execution_domain == row.execution_domain,
                col(SessionRow.ended_at).is_(None),
            )
            if row.dropped_at is not None or tx.session.exec(running.limit(1)).first() is not None:
                return False
            bounds = self._queues.bounds(topic)
            if bounds.first <= bounds.last:
                return False
            row.dropped_at = utc_now()
            tx.session.add(row)
            tx.session.flush()
            _publish(tx, row, "drop", row.archive or "")
            publish_dropped_queue(tx, row)
            self._queues.drop(topic)
        return True


def encode(messages: list[QueueMessage]) -> bytes:
    """Encode messages as JSON lines."""
    return b"".join(message.model_dump_json().encode() + b"\n" for message in messages)


def decode(data: bytes) -> list[QueueMessage]:
    """Decode JSON lines. Raises ValueError."""
    return [QueueMessage.model_validate_json(line) for line in data.splitlines()]


def _publish(tx: Transaction, row: QueueRow, change: str, archive: str) -> None:
    data = {
        "world_id": row.world_id,
        "execution_domain": row.execution_domain,
        "queue": row.topic,
        "node_id": row.node_id,
        "change": change,
        "archive": archive,
    }
    tx.record(
        RecordedChange(
            f"queue.{change}",
            row.world_id,
            row.topic,
            after={"archive": archive},
            event="queue_lifecycle",
            about=f"lifecycle:{row.topic}",
            data=data,
        )
    )


def _archive_mismatch(topic: str, digest: str) -> QmtlError:
    return QmtlError(
        "E_QUEUE_ARCHIVE",
        f"the archive {digest[:20]} of {topic} differs from the queue; nothing was removed",
        "check the artifact store, then let upkeep run again",
        queue=topic,
    )
