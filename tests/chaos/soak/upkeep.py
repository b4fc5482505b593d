"""`python -m tests.chaos.soak.upkeep DSN ARTIFACTS BEGAN_AT SECONDS`: retention in a simulated year.

A simulated day is a part of a second. So this process calls the shipped retention every simulated week with
the times at which rows are too old in the simulated year; the workflow of the worker has only one wall time
for all. It ends with its input, and prints how many rows of each kind it has archived.
"""

import json
import select
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from activities.artifacts.folder import FolderArtifacts
from activities.retention import records
from activities.retention.archives import Archives
from activities.retention.rules import RULES
from activities.retention.upkeep import AUDIT, ORDERS, RowRetention
from activities.settings import RetentionSettings
from activities.storage.opening import open_database
from tests.chaos.soak.year import DAYS

RETENTION = RetentionSettings(
    orders_days=30,
    audit_days=30,
    submissions_days=30,
    decisions_days=30,
    applies_days=30,
    sessions_days=30,
    events_days=14,
)

_EVERY_DAYS = 7

# Seconds for one kind in a week.
_LIMIT_S = 60.0


def days_kept(kind: str) -> int:
    """For how many days rows of a kind are kept."""
    if kind in (ORDERS, AUDIT):
        return RETENTION.orders_days if kind == ORDERS else RETENTION.audit_days
    return RULES[kind].days(RETENTION)


def main(dsn: str, artifacts: str, began_at: str, seconds: str) -> None:
    day = timedelta(seconds=float(seconds) / DAYS)
    due = datetime.fromisoformat(began_at)
    archived: Counter[str] = Counter()
    # Also the week for which a few old rows wait for others is one of the simulated year.
    vars(records)["WAIT_DAYS"] = records.WAIT_DAYS * day / timedelta(days=1)
    with closing(open_database(dsn)) as database:
        archives = Archives(FolderArtifacts(Path(artifacts)))
        # The times that it is given lie ahead of every clock.
        retention = RowRetention(database, archives, RETENTION, lambda: datetime.max.replace(tzinfo=UTC))
        while not _input_ends_before(due := due + _EVERY_DAYS * day):
            for kind in retention.kinds:
                kept = days_kept(kind)
                cutoff = datetime.now(UTC) - kept * day
                archived[kind] += retention.apply(kind, cutoff + timedelta(days=kept), _LIMIT_S)[0]
    print(json.dumps(archived))


def _input_ends_before(due: datetime) -> bool:
    left = (due - datetime.now(UTC)).total_seconds()
    return bool(select.select([sys.stdin], [], [], max(0.0, left))[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
