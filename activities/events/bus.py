"""The ControlBus: changes of worlds, published on topics. `SqliteBus` is the embedded backend.

Delivery is at least once: an event that is published again after a crash is not added again, or has the same
`idempotencykey`. The sequences of a topic have no gap. Every backend passes the same tests.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import structlog

from activities.storage.log import Bounds, Entry, NewEntry, SqliteLog
from qmtl_sdk.contracts.events import CloudEvent, unreadable_event
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.registry import Options, Registry
from qmtl_sdk.contracts.topic_state import Sequenced

_log = structlog.get_logger()

BUSES = Registry("qmtl.buses", "bus", {"sqlite": "activities.events.bus:open_sqlite"})
"""Each is a callable that takes `BusSettings` and returns a `ControlBus`."""


class BusSettings(Model):
    """What a backend is opened with: a folder of its own, and the options of the configuration."""

    home: Path
    options: Options = {}


class ControlBus(Protocol):
    """A log of events by topic. Any process of an installation opens it, and closes it at its end."""

    log_id: str
    """The id of this log. Sequences are only valid within it."""

    def publish(self, events: Sequence[CloudEvent]) -> None:
        """Append the events to their topics, in this order, all or nothing.

        Raises QmtlError (E_UNAVAILABLE) or OSError where the bus cannot be reached, so that the relay tries
        again. Any other error says that an event cannot be published.
        """

    def read(self, topic: str, after: int, limit: int) -> list[Sequenced]:
        """Read the retained events after a sequence."""

    def bounds(self, topic: str) -> Bounds:
        """Return the first and the last sequence that a topic retains."""

    def topics(self) -> dict[str, Bounds]:
        """List all topics with their bounds."""

    def snapshot(self, topic: str) -> tuple[int, list[CloudEvent]]:
        """Read a topic's last sequence, and the newest event of each subject up to it."""

    def end(self) -> int:
        """Return the position for `follow` that is after all events."""

    def follow(
        self, position: int, limit: int = 1000, wait_s: float = 0.0
    ) -> tuple[list[tuple[str, Sequenced]], int]:
        """Read up to `limit` events of all topics after `position`, in order.

        Returns pairs of topic and event, and the position for the next call. Where there are no events, it
        blocks until there is one, for at most `wait_s` seconds; it may return none sooner. Other threads use
        the bus meanwhile, and `close` from one of them ends the wait. Whatever it raises, the Gateway logs it
        and calls again after a second.
        """

    def trim(self, topic: str, first: int) -> int:
        """Remove the events before `first`. Snapshots stay complete. Returns how many were removed."""

    def close(self) -> None:
        """Close the bus."""


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
        return [_sequenced(entry) for entry in self._log.read(topic, after, limit)]

    def bounds(self, topic: str) -> Bounds:
        return self._log.bounds(topic)

    def topics(self) -> dict[str, Bounds]:
        return self._log.topics()

    def snapshot(self, topic: str) -> tuple[int, list[CloudEvent]]:
        sequence, bodies = self._log.newest(topic)
        events = (_event(body) for body in bodies)
        return sequence, [event for event in events if event is not None]

    def end(self) -> int:
        return self._log.end()

    def follow(
        self, position: int, limit: int = 1000, wait_s: float = 0.0
    ) -> tuple[list[tuple[str, Sequenced]], int]:
        entries, position = self._log.follow(position, limit, wait_s)
        return [(entry.topic, _sequenced(entry)) for entry in entries], position

    def trim(self, topic: str, first: int) -> int:
        return self._log.trim(topic, first)

    def close(self) -> None:
        self._log.close()


def _sequenced(entry: Entry) -> Sequenced:
    """Return an entry as its event; one that cannot be read as an event that says so, in its place."""
    event = _event(entry.body)
    if event is None:
        _log.error("an event of the bus cannot be read", topic=entry.topic, sequence=entry.sequence)
        event = unreadable_event(entry.topic, entry.sequence)
    return Sequenced(sequence=entry.sequence, event=event)


def _event(body: str) -> CloudEvent | None:
    """Return the event of a body; None where it cannot be read, as one of a later version may be."""
    try:
        return CloudEvent.model_validate_json(body)
    except ValueError:
        return None
