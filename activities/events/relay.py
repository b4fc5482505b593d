"""The relay publishes the outbox on the ControlBus.

`python -m activities.events.relay` runs it until SIGTERM.

1. One relay works for a database at a time; others wait until its process ends.
2. It publishes unpublished rows in the order of their numbers. Within a key that is the order of commits,
   since a writer holds its key from taking the number until it commits. (Reading only numbers above the
   last published one would lose rows that commit late.)
3. Then it marks them as published. After a crash between the two it publishes them again under the same
   idempotency key, and the bus adds each once.
4. From time to time it trims topics to their retention; a client that returns from before that gets a
   snapshot.
"""

import json
import signal
import sys
import threading
import time

import structlog

from activities.events.bus import BusSettings, ControlBus, open_bus
from activities.events.outbox import SqlOutbox
from activities.settings import Settings, settings
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.tables import OutboxRow
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import DATA, CloudEvent

# Rows that one step publishes.
BATCH = 500

# Seconds between two reads of the outbox while it is empty.
_IDLE_S = 0.02

# Seconds before the database is tried again when it cannot be reached.
_UNAVAILABLE_S = 1.0

# Seconds between two trims of all topics.
_TRIM_EVERY_S = 60.0

# Seconds between two tries to become the relay of the database.
_ELECTION_S = 0.5

_log = structlog.get_logger()


class Relay:
    """Publishes the outbox on a bus, keeping `keep` events of each topic."""

    def __init__(self, database: Database, bus: ControlBus, keep: int) -> None:
        self._database = database
        self._outbox = SqlOutbox(database)
        self._bus = bus
        self._keep = keep
        self._source = f"/qmtl/{database.store_id[:12]}"

    def run(self, stop: threading.Event) -> None:
        """Relay until `stop` is set.

        A database or bus that cannot be reached is tried again; nothing is skipped.
        """
        while not stop.is_set():
            try:
                with self._database.elected("relay") as elected:
                    if elected:
                        self._relay(stop)
                    else:
                        stop.wait(_ELECTION_S)
            except QmtlError as error:
                _log.warning("the relay cannot publish", why=str(error))
                stop.wait(_UNAVAILABLE_S)

    def _relay(self, stop: threading.Event) -> None:
        trimmed = time.monotonic()
        while not stop.is_set():
            if not self.step():
                stop.wait(_IDLE_S)
            if time.monotonic() - trimmed > _TRIM_EVERY_S:
                self.trim()
                trimmed = time.monotonic()

    def step(self) -> int:
        """Publish a batch of the outbox. Returns how many rows there were."""
        rows = self._outbox.waiting(BATCH)
        if rows:
            self._bus.publish([self._event(row) for row in rows])
            self._outbox.mark_published([row.seq for row in rows if row.seq is not None])
        return len(rows)

    def trim(self) -> None:
        """Drop events beyond the retention of each topic."""
        for topic, bounds in self._bus.topics().items():
            self._bus.trim(topic, bounds.last - self._keep + 1)

    def _event(self, row: OutboxRow) -> CloudEvent:
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
                "data": json.loads(row.data),
            }
        )


def run(config: Settings) -> None:
    """Run the relay until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = open_database(config.database_dsn)
    try:
        bus = open_bus(config.events.bus, BusSettings(home=config.home, options=config.events.bus_options))
        try:
            print("relay: ready", flush=True)
            Relay(database, bus, config.events.keep).run(stop)
        finally:
            bus.close()
    finally:
        database.close()


def main() -> int:
    """Run the relay with the settings of this folder. Returns the exit code."""
    try:
        config = settings()
        config.require_profile()
        run(config)
    except QmtlError as error:
        print(f"relay: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
