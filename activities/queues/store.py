"""Queues of node outputs:

one topic for each node, world and domain. `SqliteQueues` is the embedded backend.
"""

from pathlib import Path
from typing import Protocol

from activities.storage.log import Bounds, NewEntry, SqliteLog
from qmtl_sdk.contracts.sessions import QueueMessage


class QueueStore(Protocol):
    """Messages of topics, numbered from 1."""

    def append(self, topic: str, messages: tuple[QueueMessage, ...]) -> int:
        """Append the messages whose key the topic does not have yet. Returns how many those were."""

    def read(self, topic: str, after: int, limit: int) -> tuple[list[QueueMessage], int]:
        """Read messages after a sequence, and return the sequence of the last one."""

    def bounds(self, topic: str) -> Bounds:
        """Return the first and the last readable sequence."""

    def last_before(self, topic: str, at: float) -> int:
        """Return the sequence of the newest message appended before `at` (seconds since 1970); 0 for none."""

    def trim(self, topic: str, first: int) -> int:
        """Remove the messages before `first`. Returns how many those were."""

    def drop(self, topic: str) -> None:
        """Remove a topic with everything in it."""

    def close(self) -> None:
        """Close the store."""


class SqliteQueues:
    """All queues in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._log = SqliteLog(path)

    def append(self, topic: str, messages: tuple[QueueMessage, ...]) -> int:
        return self._log.append(
            [NewEntry(topic, message.key, "", message.model_dump_json()) for message in messages]
        )

    def read(self, topic: str, after: int, limit: int) -> tuple[list[QueueMessage], int]:
        entries = self._log.read(topic, after, limit)
        end = entries[-1].sequence if entries else max(after, self._log.bounds(topic).first - 1)
        return [QueueMessage.model_validate_json(entry.body) for entry in entries], end

    def bounds(self, topic: str) -> Bounds:
        return self._log.bounds(topic)

    def last_before(self, topic: str, at: float) -> int:
        return self._log.last_before(topic, at)

    def trim(self, topic: str, first: int) -> int:
        return self._log.trim(topic, first)

    def drop(self, topic: str) -> None:
        self._log.drop(topic)

    def close(self) -> None:
        self._log.close()
