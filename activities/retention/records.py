"""Retention of the tables without a chain: decisions, submissions, sessions, applies, events."""

import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Text, delete, func, literal, select

from activities.retention.ages import Ages
from activities.retention.archives import (
    LOCK,
    Archives,
    archive_row,
    archive_until,
    record_archives,
    require_all_removed,
)
from activities.retention.rule import Part, Rule
from activities.storage.database import Database
from activities.storage.keys import has_key
from activities.storage.transactions import utc_text

# The key of a record. (Any: the columns of whatever table.)
Key = tuple[Any, ...]

MOST_RECORDS = 500
"""Records of one archive."""

MOST_CHARACTERS = 8_000_000
"""Characters of the long texts of one archive, about; one record may have more."""

WORTH_A_FILE = 100
"""Records from which on an archive is made; fewer wait for others, for `WAIT_DAYS` at most."""

WAIT_DAYS = 7


def is_worth_a_file(records: int, oldest: str, cutoff: datetime) -> bool:
    """Return whether records are archived now; `oldest` is the time of the oldest (ISO 8601, UTC)."""
    return records >= WORTH_A_FILE or oldest < utc_text(cutoff - timedelta(days=WAIT_DAYS))


def count_within(sizes: Sequence[int]) -> int:
    """Count the first records that one archive holds, by the characters of each; at least one."""
    characters = 0
    for number, size in enumerate(sizes):
        characters += size
        if number and characters > MOST_CHARACTERS:
            return number
    return len(sizes)


# Characters of a row besides its long texts, about.
_SHORT = 200


class RecordRetention:
    """Archives and removes what a rule finds."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def apply(self, rule: Rule, ages: Ages, limit_s: float) -> tuple[int, bool]:
        """Archive the records of a rule that are due, for about `limit_s` seconds.

        Returns how many rows were archived, and whether some are left. Raises QmtlError (E_ARCHIVE).
        """
        deadline = time.monotonic() + limit_s
        return archive_until(deadline, lambda: self._archive_next(rule, ages))

    def _archive_next(self, rule: Rule, ages: Ages) -> int:
        keys = self._due(rule, ages)
        return self._archive(rule, keys) if keys else 0

    def _due(self, rule: Rule, ages: Ages) -> list[Key]:
        """Read the keys of the records of the next archive."""
        with self._database.read() as session:
            connection = session.connection()
            found = connection.execute(rule.due(ages).limit(MOST_RECORDS)).all()
            if not found or not is_worth_a_file(len(found), found[0].at, ages.limit):
                return []
            keys: list[Key] = [tuple(row[:-1]) for row in found]
            sizes: Counter[Key] = Counter()
            for part in rule.parts:
                of_part = _sizes(connection, part, keys)
                sizes.update({key: of_part.get(key[: len(part.key)], 0) for key in keys})
        return keys[: count_within([sizes[key] for key in keys])]

    def _archive(self, rule: Rule, keys: Sequence[Key]) -> int:
        """Archive records, and remove them where nothing of them has changed meanwhile."""
        archives = []
        with self._database.read() as session:
            found = [(part, _rows(session.connection(), part, keys)) for part in rule.parts]
        for part, rows in found:
            if rows:
                artifact = self._archives.write(part.table, rows)
                archives.append(archive_row(part.table.name, "", *_range(part, rows), len(rows), artifact))
        with self._database.write("upkeep") as tx:
            tx.lock(LOCK)
            # What goes with a record is removed before it.
            for part, rows in reversed(found):
                if rows:
                    removed = tx.connection.execute(delete(part.table).where(_of(part, keys))).rowcount
                    require_all_removed(part.table.name, removed, len(rows))
            record_archives(tx, archives)
        return sum(len(rows) for _, rows in found)


def _sizes(connection: Connection, part: Part, keys: Sequence[Key]) -> dict[Key, int]:
    """Sum up the characters of each record's rows in one table: its long texts, and some for the rest."""
    key = [part.table.c[name] for name in part.key]
    lengths = [func.length(column) for column in part.table.columns if isinstance(column.type, Text)]
    query = select(*key, func.sum(sum(lengths, literal(_SHORT)))).where(_of(part, keys)).group_by(*key)
    return {tuple(row[:-1]): int(row[-1] or 0) for row in connection.execute(query)}


def _rows(connection: Connection, part: Part, keys: Sequence[Key]) -> list[dict[str, Any]]:
    query = select(part.table).where(_of(part, keys)).order_by(*part.table.primary_key.columns)
    return [dict(row._mapping) for row in connection.execute(query)]


def _of(part: Part, keys: Sequence[Key]) -> ColumnElement[bool]:
    """Select the rows of records."""
    if len(part.key) == 1:
        return part.table.c[part.key[0]].in_([key[0] for key in keys])
    return has_key(part.table, part.key, keys)


def _range(part: Part, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the first and last number of rows; zeros where they have none."""
    numbers = [row["seq"] for row in rows] if "seq" in part.table.c else [0]
    return min(numbers), max(numbers)
