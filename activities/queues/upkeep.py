"""The life cycle of queues: what is older than its kind's retention goes to an archive and then from the queue; a queue that is empty and unused is dropped.

1. The messages to go are written as an artifact under their content hash.
2. The artifact is read back, and compared message by message with what the queue still holds. Where they differ nothing is removed (E_QUEUE_ARCHIVE).
3. The archive is noted with the queue and told (`queue_lifecycle`), and only then are the messages removed. A crash before that archives them again.
4. A queue without messages, without a session that could fill it, and older than its retention, is dropped: noted, told, and told to the tag queries that found it.
"""

from datetime import datetime, timedelta

from sqlmodel import col, select

from activities.artifacts.store import ArtifactStore
from activities.messages.upkeep import RetentionResult
from activities.queues.catalogue import tell_leaving
from activities.queues.store import QueueStore
from activities.storage.database import Database
from activities.storage.tables import QueueRow, SessionRow
from activities.storage.transactions import Transaction, utc_now
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueMessage

CHUNK = 5000


class QueueKeeper:
    def __init__(self, database: Database, queues: QueueStore, artifacts: ArtifactStore) -> None:
        self._database, self._queues, self._artifacts = database, queues, artifacts

    def due(self, now: datetime) -> list[str]:
        """The queues that have something to go, or that may be dropped."""
        with self._database.read() as session:
            rows = session.exec(
                select(QueueRow).where(col(QueueRow.dropped_at).is_(None)).order_by(col(QueueRow.topic))
            ).all()
        return [row.topic for row in rows if self._old(row, now) or self._idle(row, now)]

    def apply_retention(self, topic: str, now: datetime) -> RetentionResult:
        """Archive what is too old, then drop the queue if nothing is left of it and nobody uses it. Raises QmtlError (E_QUEUE_ARCHIVE)."""
        with self._database.read() as session:
            row = session.get(QueueRow, topic)
        if row is None or row.dropped_at is not None:
            return RetentionResult(topic=topic)
        last, archived, archive = self._old(row, now), 0, ""
        while self._queues.bounds(topic).first <= last:
            archive, count, end = self._archive(row, last)
            archived += count
            self._queues.trim(topic, end + 1)
        dropped = self._idle(row, now) and self._drop(topic)
        return RetentionResult(topic=topic, archived=archived, archive=archive, dropped=dropped)

    def _old(self, row: QueueRow, now: datetime) -> int:
        """The sequence of the newest message that is too old; 0 for none."""
        return self._queues.last_before(row.topic, (now - timedelta(days=row.retention_days)).timestamp())

    def _idle(self, row: QueueRow, now: datetime) -> bool:
        bounds = self._queues.bounds(row.topic)
        old = datetime.fromisoformat(row.created_at) < now - timedelta(days=row.retention_days)
        return old and bounds.first > bounds.last

    def _archive(self, row: QueueRow, last: int) -> tuple[str, int, int]:
        """Write, read back, compare, note. The artifact, how many messages, and the last of them."""
        first = self._queues.bounds(row.topic).first
        count = min(CHUNK, last - first + 1)
        messages, end = self._queues.read(row.topic, first - 1, count)
        data = encode(messages)
        digest = content_hash(data)
        self._artifacts.put(digest, data)
        again, _ = self._queues.read(row.topic, first - 1, count)
        try:
            there = decode(self._artifacts.get(digest))
        except (QmtlError, ValueError) as error:
            raise _unlike(row.topic, digest) from error
        if there != again or end > last:
            raise _unlike(row.topic, digest)
        with self._database.write("upkeep") as tx:
            found = tx.session.get(QueueRow, row.topic, with_for_update=True)
            assert found is not None  # queues are never deleted
            found.archived_at, found.archive = utc_now(), digest
            tx.session.add(found)
            _tell(tx, found, "archive", digest)
        return digest, len(messages), end

    def _drop(self, topic: str) -> bool:
        """False where a session has come to use it."""
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
            row.dropped_at = utc_now()
            tx.session.add(row)
            tx.session.flush()
            _tell(tx, row, "drop", row.archive or "")
            tell_leaving(tx, row)
        self._queues.drop(topic)
        return True


def encode(messages: list[QueueMessage]) -> bytes:
    """A JSON object a line."""
    return b"".join(message.model_dump_json().encode() + b"\n" for message in messages)


def decode(data: bytes) -> list[QueueMessage]:
    return [QueueMessage.model_validate_json(line) for line in data.splitlines()]


def _tell(tx: Transaction, row: QueueRow, change: str, archive: str) -> None:
    data = {
        "world_id": row.world_id,
        "execution_domain": row.execution_domain,
        "queue": row.topic,
        "node_id": row.node_id,
        "change": change,
        "archive": archive,
    }
    tx.record(
        f"queue.{change}",
        row.world_id,
        row.topic,
        after={"archive": archive},
        event="queue_lifecycle",
        about=f"lifecycle:{row.topic}",
        data=data,
    )


def _unlike(topic: str, digest: str) -> QmtlError:
    return QmtlError(
        "E_QUEUE_ARCHIVE",
        f"the archive {digest[:20]} of {topic} is not what the queue holds; nothing was removed",
        "check the artifact store, then let upkeep run again",
        queue=topic,
    )
