"""Node queues: what nodes put out, a topic a node, world and domain. `SqliteQueues` is the embedded backend."""

from pathlib import Path
from typing import Protocol

from activities.storage.log import Bounds, NewEntry, SqliteLog
from qmtl_sdk.contracts.sessions import QueueMessage


class QueueStore(Protocol):
    def append(self, topic: str, messages: tuple[QueueMessage, ...]) -> int:
        """Append what has a key that the topic does not have yet; how many those were."""

    def read(self, topic: str, after: int, limit: int) -> tuple[list[QueueMessage], int]:
        """The messages after a position, and the position after them."""

    def bounds(self, topic: str) -> Bounds: ...

    def last_before(self, topic: str, at: float) -> int:
        """The sequence of the newest message that was appended before `at` (seconds since 1970); 0 where there is none."""

    def trim(self, topic: str, first: int) -> int: ...

    def drop(self, topic: str) -> None: ...

    def close(self) -> None: ...


class SqliteQueues:
    def __init__(self, path: Path) -> None:
        self._log = SqliteLog(path)

    def append(self, topic: str, messages: tuple[QueueMessage, ...]) -> int:
        return self._log.append(
            [NewEntry(topic, message.key, "", message.model_dump_json()) for message in messages]
        )

    def read(self, topic: str, after: int, limit: int) -> tuple[list[QueueMessage], int]:
        entries = self._log.read(topic, after, limit)
        return [QueueMessage.model_validate_json(entry.body) for entry in entries], entries[
            -1
        ].sequence if entries else max(after, self._log.bounds(topic).first - 1)

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
