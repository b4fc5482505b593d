"""The relay publishes the outbox on the ControlBus.

`python -m activities.events.relay` runs it until SIGTERM.

1. One relay works for a database at a time; others wait until its process ends.
2. It publishes unpublished rows in the order of their numbers. Within a key that is the order of commits,
   since a writer holds its key from taking the number until it commits. (Reading only numbers above the
   last published one would lose rows that commit late.)
3. Then it marks them as published. After a crash between the two it publishes them again under the same
   idempotency key, and the bus adds each once.
4. A row that cannot be published, such as one of a form that no event may have, becomes a dead letter in the
   same transaction, whatever error it raises. The rows after it go on. A bus that cannot be reached is
   retried instead.
5. From time to time it trims topics to their retention; a client that returns from before that gets a
   snapshot.
"""

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import structlog

from activities.events.bus import BusSettings, ControlBus, open_bus
from activities.events.outbox import SqlOutbox
from activities.process import run_process
from activities.settings import Settings
from activities.storage.database import Database
from activities.storage.elected import run_elected, unreachable
from activities.storage.tables import OutboxRow
from qmtl_sdk.contracts.canonical import read_json
from qmtl_sdk.contracts.events import DATA, MAX_DATA, CloudEvent
from qmtl_sdk.contracts.texts import printable

# Rows that one step publishes.
BATCH = 500

# Seconds between two trims of all topics.
_TRIM_EVERY_S = 60.0

# Characters of a dead letter's reason.
_REASON = 500

_log = structlog.get_logger()


class Relay:
    """Publishes the outbox on a bus, keeping `keep` events of each topic."""

    def __init__(self, database: Database, bus: ControlBus, keep: int) -> None:
        self._database = database
        self._outbox = SqlOutbox(database)
        self._bus = bus
        self._keep = keep
        self._source = f"/qmtl/{database.store_id[:12]}"
        self._trimmed = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Relay until `stop` is set.

        A database or bus that cannot be reached is tried again; nothing is skipped.
        """
        run_elected(self._database, "relay", self._turn, stop)

    def _turn(self) -> float:
        """Publish a batch, and trim where that is due. Returns the seconds until the next one is due."""
        count = self.step()
        left = self._trimmed + _TRIM_EVERY_S - time.monotonic()
        if left <= 0:
            self.trim()
            self._trimmed, left = time.monotonic(), _TRIM_EVERY_S
        return 0.0 if count else left

    def step(self) -> int:
        """Publish a batch of the outbox. Returns how many rows there were.

        A row that cannot be published becomes a dead letter, and the rest goes on. Raises what the bus raises
        where it cannot be reached.
        """
        rows = {row.seq: row for row in self._outbox.waiting(BATCH) if row.seq is not None}
        if rows:
            unpublishable = self._publish(rows)
            for seq, reason in unpublishable.items():
                row = rows[seq]
                _log.error(
                    "an event cannot be published", number=seq, type=row.type, world=row.world_id, why=reason
                )
            self._outbox.mark_published(list(rows), unpublishable)
        return len(rows)

    def _publish(self, rows: Mapping[int, OutboxRow]) -> dict[int, str]:
        """Publish rows in their order. Returns those that cannot be published, with the reasons."""
        unpublishable: dict[int, str] = {}
        events: dict[int, CloudEvent] = {}
        for seq, row in rows.items():
            try:
                events[seq] = self._event(row)
            except Exception as error:  # whatever one row holds, the rows after it go on
                unpublishable[seq] = _reason(error)
        try:
            self._bus.publish(list(events.values()))
        except Exception as error:
            if unreachable(error):
                raise
            unpublishable |= self._publish_singly(events)
        return unpublishable

    def _publish_singly(self, events: Mapping[int, CloudEvent]) -> dict[int, str]:
        """Publish events one by one, after the bus refused the batch. Returns what it refuses, and why."""
        refused: dict[int, str] = {}
        for seq, event in events.items():
            try:
                self._bus.publish([event])
            except Exception as error:
                if unreachable(error):
                    raise
                refused[seq] = _reason(error)
        return refused

    def trim(self) -> None:
        """Drop events beyond the retention of each topic."""
        for topic, bounds in self._bus.topics().items():
            first = bounds.last - self._keep + 1
            if first > bounds.first:  # of thousands of topics most have nothing to trim
                self._bus.trim(topic, first)

    def _event(self, row: OutboxRow) -> CloudEvent:
        if len(row.data) > MAX_DATA:
            raise ValueError(f"its data has {len(row.data)} characters; {MAX_DATA} are allowed")
        return CloudEvent.model_validate(
            {
                "id": row.event_id,
                "source": self._source,
                "type": row.type,
                "subject": row.subject,
                "time": row.at,
                "dataschema": f"/events/schema#/data/{row.type}" if row.type in DATA else "",
                "worldid": row.world_id,
                "partitionkey": row.key,
                "idempotencykey": row.event_id,
                "data": read_json(row.data),
            }
        )


def _reason(error: Exception) -> str:
    """Return an error as one line."""
    return printable(" ".join(f"{type(error).__name__}: {error}".split()), _REASON)


@contextmanager
def _open(config: Settings, database: Database) -> Iterator[Relay]:
    bus = open_bus(config.events.bus, BusSettings(home=config.home, options=config.events.bus_options))
    try:
        yield Relay(database, bus, config.events.keep)
    finally:
        bus.close()


if __name__ == "__main__":
    sys.exit(run_process("relay", _open))
