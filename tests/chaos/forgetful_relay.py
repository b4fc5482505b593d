"""The outbox taken out.

A relay that remembers in its own memory how far it has come, and begins at the end.
"""

import time

from sqlalchemy import func
from sqlmodel import col, select

from activities.events.bus import SqliteBus
from activities.events.relay import Relay
from activities.settings import settings
from activities.storage.opening import open_database
from activities.storage.tables import OutboxRow


def main() -> None:
    database, bus = open_database(settings().database_dsn), SqliteBus(settings().bus_path)
    relay = Relay(database, bus, 100_000)
    with database.read() as session:
        last = session.exec(select(func.max(OutboxRow.seq))).one() or 0
    while True:
        with database.read() as session:
            rows = session.exec(
                select(OutboxRow).where(col(OutboxRow.seq) > last).order_by(col(OutboxRow.seq))
            ).all()
        if rows:
            bus.publish([relay._event(row) for row in rows])
            relay._outbox.mark_published([row.seq for row in rows if row.seq is not None])
            last = rows[-1].seq
        time.sleep(0.02)


if __name__ == "__main__":
    main()
