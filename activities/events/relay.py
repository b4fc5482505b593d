"""The relay: tells the ControlBus what the outbox holds. `python -m activities.events.relay` runs it until SIGTERM, and the desk that takes orders to their venues beside it.

1. One relay at a time for a database; others wait until its process ends.
2. Rows that were not told yet go to the bus in the order of their numbers: within a key that is the order of commits, since a writer holds its key from
   the number to the commit. (Asking for numbers above the last one told would lose what commits late.)
3. Then they are noted as told. A crash between the two tells them again, under the same idempotency key, which the bus adds once.
4. Now and then topics are trimmed to what is kept; a client that comes back from before that gets a snapshot.
"""

import json
import signal
import sys
import threading
import time

import structlog

from activities.events.bus import ControlBus, SqliteBus
from activities.events.outbox import SqlOutbox
from activities.orders.sql import SqlOrderStore
from activities.orders.venue import OrderRouter, brokers
from activities.storage.database import Database, open_database
from activities.storage.tables import OutboxRow
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import DATA, CloudEvent
from qmtl_sdk.runtime.config import Settings, settings

BATCH, IDLE_S, AWAY_S, TRIM_EVERY_S, TAKE_OVER_S = 500, 0.02, 1.0, 60.0, 0.5
_log = structlog.get_logger()


class Relay:
    def __init__(self, database: Database, bus: ControlBus, keep: int) -> None:
        self._database, self._outbox, self._bus, self._keep = database, SqlOutbox(database), bus, keep
        self._source = f"/qmtl/{database.store_id[:12]}"

    def run(self, stop: threading.Event) -> None:
        """Relay until told to stop. What can't be reached now is tried again; nothing is skipped."""
        while not stop.is_set():
            try:
                with self._database.elected("relay") as mine:
                    if mine:
                        self._relay(stop)
                    else:
                        stop.wait(TAKE_OVER_S)
            except QmtlError as error:
                _log.warning("events wait", why=str(error))
                stop.wait(AWAY_S)

    def _relay(self, stop: threading.Event) -> None:
        trimmed = time.monotonic()
        while not stop.is_set():
            if not self.step():
                stop.wait(IDLE_S)
            if time.monotonic() - trimmed > TRIM_EVERY_S:
                self.trim()
                trimmed = time.monotonic()

    def step(self) -> int:
        """Tell what waits, up to a batch; how much that was."""
        rows = self._outbox.waiting(BATCH)
        if rows:
            self._bus.publish([self._event(row) for row in rows])
            self._outbox.told([row.seq for row in rows if row.seq is not None])
        return len(rows)

    def trim(self) -> None:
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
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    database = open_database(config.database_dsn)
    try:
        bus = SqliteBus(config.bus_path)
        print("relay: ready", flush=True)
        desk = threading.Thread(
            target=OrderRouter(
                database, SqlOrderStore(database), brokers(config.orders.paper_fill_delay_s)
            ).run,
            args=(stop,),
            name="qmtl-venues",
        )
        desk.start()
        try:
            Relay(database, bus, config.events.keep).run(stop)
        finally:
            stop.set()
            desk.join()
            bus.close()
    finally:
        database.close()


def main() -> int:
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
