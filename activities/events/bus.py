"""The ControlBus: what changed, on topics of a world. `SqliteBus` is the embedded backend; every backend passes the same tests.

At least once: an event that is published again after a crash is either not added again or has the same `idempotencykey`. A topic's sequences have no gap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from activities.storage.log import Bounds, NewEntry, SqliteLog
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.topic_state import Sequenced


class ControlBus(Protocol):
    log_id: str
    """Which log this is: sequences of another one mean nothing here."""

    def publish(self, events: Sequence[CloudEvent]) -> None:
        """Append the events to their topics, in this order, all or nothing."""

    def read(self, topic: str, after: int, limit: int) -> list[Sequenced]:
        """The events after a sequence, as far as they are still there."""

    def bounds(self, topic: str) -> Bounds: ...

    def topics(self) -> dict[str, Bounds]: ...

    def snapshot(self, topic: str) -> tuple[int, list[CloudEvent]]:
        """The topic's last sequence and the newest event of each subject as of it."""

    def end(self) -> int:
        """A position for `follow`: after everything."""

    def follow(self, position: int, limit: int = 1000) -> tuple[list[tuple[str, Sequenced]], int]:
        """What came to any topic after `position`, in order, and the position after it."""

    def trim(self, topic: str, first: int) -> int:
        """Forget the events before `first`; snapshots stay whole."""

    def close(self) -> None: ...


class SqliteBus:
    def __init__(self, path: Path) -> None:
        self._log = SqliteLog(path)
        self.log_id = self._log.log_id

    def publish(self, events: Sequence[CloudEvent]) -> None:
        self._log.append(
            [
                NewEntry(
                    event.topic,
                    event.idempotencykey,
                    event.subject,
                    event.model_dump_json(),
                    event.ends_subject,
                )
                for event in events
            ]
        )

    def read(self, topic: str, after: int, limit: int) -> list[Sequenced]:
        return [
            Sequenced(sequence=entry.sequence, event=_event(entry.body))
            for entry in self._log.read(topic, after, limit)
        ]

    def bounds(self, topic: str) -> Bounds:
        return self._log.bounds(topic)

    def topics(self) -> dict[str, Bounds]:
        return self._log.topics()

    def snapshot(self, topic: str) -> tuple[int, list[CloudEvent]]:
        sequence, bodies = self._log.newest(topic)
        return sequence, [_event(body) for body in bodies]

    def end(self) -> int:
        return self._log.end()

    def follow(self, position: int, limit: int = 1000) -> tuple[list[tuple[str, Sequenced]], int]:
        entries, position = self._log.follow(position, limit)
        return [
            (entry.topic, Sequenced(sequence=entry.sequence, event=_event(entry.body))) for entry in entries
        ], position

    def trim(self, topic: str, first: int) -> int:
        return self._log.trim(topic, first)

    def close(self) -> None:
        self._log.close()


def _event(body: str) -> CloudEvent:
    return CloudEvent.model_validate_json(body)
