"""The ControlBus: changes of a world, on topics. `SqliteBus` is the embedded backend; every backend passes the same tests.

Delivery is at least once: an event that is published again after a crash is either not added again or has the same
`idempotencykey`. A topic's sequences have no gap.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from activities.storage.log import Bounds, NewEntry, SqliteLog
from qmtl_sdk.contracts.events import CloudEvent
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.registry import Registry
from qmtl_sdk.contracts.topic_state import Sequenced

BUSES = Registry("qmtl.buses", "bus", {"sqlite": "activities.events.bus:open_sqlite"})
"""Each is a callable that takes `BusSettings` and returns a `ControlBus`."""


class BusSettings(Model):
    """What a backend is opened with: a folder of its own, and the options of the configuration."""

    home: Path
    options: dict[str, str] = {}


class ControlBus(Protocol):
    """A log of events by topic. Any process of an installation opens it, and closes it at its end."""

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


def open_bus(name: str, settings: BusSettings) -> ControlBus:
    """Open the bus of this name.

    Raises QmtlError: E_EXTENSION_UNKNOWN, with the known names, where there is no such bus; E_EXTENSION.
    """
    bus: ControlBus = BUSES.load(name)(settings)
    return bus


def open_sqlite(settings: BusSettings) -> "SqliteBus":
    """Open the embedded bus: one SQLite file."""
    return SqliteBus(settings.home / "bus.db")


class SqliteBus:
    """A bus in one SQLite file, for the processes of one machine."""

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
