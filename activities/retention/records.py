"""Retention of the tables without a chain: decisions, submissions, sessions, applies, events."""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select, tuple_

from activities.retention.archives import (
    LOCK,
    Archives,
    archive_row,
    archive_until,
    record_archives,
    require_all_removed,
)
from activities.retention.rules import Part, Rule
from activities.storage.database import Database
from activities.storage.transactions import utc_text

MOST_RECORDS = 500
"""Records of one archive."""

_MOST_CHARACTERS = 8_000_000
"""Characters of the long texts of one archive's records, about; one record may have more."""

WORTH_A_FILE = 100
"""Records from which on an archive is made; fewer wait for others, for `WAIT_DAYS` at most."""

WAIT_DAYS = 7


def is_worth_a_file(records: int, oldest: str, cutoff: datetime) -> bool:
    """Return whether records are archived now; `oldest` is the time of the oldest (ISO 8601, UTC)."""
    return records >= WORTH_A_FILE or oldest < utc_text(cutoff - timedelta(days=WAIT_DAYS))


class RecordRetention:
    """Archives and removes what a rule finds."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def apply(self, rule: Rule, cutoff: datetime, limit_s: float) -> tuple[int, bool]:
        """Archive the records of a rule that are due, for about `limit_s` seconds.

        Returns how many rows were archived, and whether some are left. Raises QmtlError (E_ARCHIVE).
        """
        deadline = time.monotonic() + limit_s
        return archive_until(deadline, lambda: self._archive_next(rule, cutoff))

    def _archive_next(self, rule: Rule, cutoff: datetime) -> int:
        keys = self._due(rule, cutoff)
        return self._archive(rule, keys) if keys else 0

    def _due(self, rule: Rule, cutoff: datetime) -> list[tuple[Any, ...]]:
        """Read the keys of the records of the next archive. (Any: keys of whatever table.)"""
        with self._database.read() as session:
            found = session.connection().execute(rule.due(utc_text(cutoff)).limit(MOST_RECORDS)).all()
        if not found or not is_worth_a_file(len(found), found[0].at, cutoff):
            return []
        keys: list[tuple[Any, ...]] = []
        characters = 0
        for row in found:
            characters += row.size or 0
            if keys and characters > _MOST_CHARACTERS:
                break
            keys.append(tuple(row[:-2]))
        return keys

    def _archive(self, rule: Rule, keys: Sequence[tuple[Any, ...]]) -> int:
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


def _rows(connection: Connection, part: Part, keys: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    query = select(part.table).where(_of(part, keys)).order_by(*part.table.primary_key.columns)
    return [dict(row._mapping) for row in connection.execute(query)]


def _of(part: Part, keys: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Select the rows of records."""
    columns = [part.table.c[name] for name in part.key]
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return tuple_(*columns).in_(keys)


def _range(part: Part, rows: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Return the first and last number of rows; zeros where they have none."""
    numbers = [row["seq"] for row in rows] if "seq" in part.table.c else [0]
    return min(numbers), max(numbers)
