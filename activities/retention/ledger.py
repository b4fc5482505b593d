"""The ledger against the order log: verify that it is what the log says, or book it anew.

The log is read through its archives, so an old world needs its archives to be whole.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

from sqlalchemy import Connection
from sqlmodel import Session

from activities.fence.ledger_entries import entries_of
from activities.fence.log_line import LogLine
from activities.fence.segments import LOG, rows_after
from activities.fence.state import locked_fence
from activities.ledger.sql import (
    DatedEntry,
    Held,
    book_entries,
    booked_row,
    current_positions,
    entries_before,
    ledger_rows,
    remove_ledger,
)
from activities.retention.archives import LOCK, Archives, archives_of
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import LedgerCheck, PositionKey

_CHUNK = 2000
"""Rows that are read at a time."""

_MOST_DIFFERENCES = 20
"""Differences that a check names."""

_COMPARED = ("at", *PositionKey._fields, "ref", "entry", "after")


class LedgerProjection:
    """The ledgers of worlds as their order logs say they are."""

    def __init__(self, database: Database, archives: Archives) -> None:
        self._database = database
        self._archives = archives

    def verify(self, world_id: str) -> LedgerCheck:
        """Compare a ledger with the order log, to the last digit, in one snapshot.

        Raises QmtlError: E_WORLD_UNKNOWN, E_ARCHIVE.
        """
        differences, held = list[str](), Held()
        with self._database.read() as session:
            world_row(session, world_id)
            stored = _stored(session.connection(), world_id)
            positions = current_positions(session.connection(), world_id)
            entries = 0
            for dated in self._entries(session, world_id):
                entries += 1
                found = next(stored, None)
                before = partial(entries_before, session.connection(), world_id, seq=found and found[0])
                made = booked_row(dated, held, before)
                if found is None or found[1] != made:
                    differences.append(f"entry {entries}: the log makes {made}, the ledger has {found}")
                if len(differences) == _MOST_DIFFERENCES:
                    break
            else:
                differences += [f"the log makes no entry {found[1]}" for found in islice(stored, 9)]
                differences += _other_positions(held, positions)
        return LedgerCheck(
            world_id=world_id,
            entries=entries,
            positions=len(positions),
            differences=tuple(text[:500] for text in differences[:_MOST_DIFFERENCES]),
        )

    def rebuild(self, world_id: str, actor: str) -> LedgerCheck:
        """Book a ledger anew from the order log, of a world that is halted: a halt could not come in between.

        Entries get new numbers. Raises QmtlError: E_WORLD_UNKNOWN, E_NOT_HALTED, E_ARCHIVE. Then the ledger
        stays as it was.
        """
        with self._database.write(actor) as tx:
            tx.lock(LOCK)  # or rows that are archived meanwhile would be found nowhere
            if not locked_fence(tx, world_id).halted:
                raise QmtlError(
                    "E_NOT_HALTED",
                    f"world {world_id} is not halted, and a halt would wait for its ledger",
                    f"halt it first: qmtl world halt {world_id}",
                )
            remove_ledger(tx, world_id)
            entries = 0
            chunk = list[DatedEntry]()
            for dated in self._entries(tx.session, world_id):
                chunk.append(dated)
                entries += 1
                if len(chunk) == _CHUNK:
                    book_entries(tx, world_id, chunk)
                    chunk = []
            book_entries(tx, world_id, chunk)
            positions = len(current_positions(tx.connection, world_id))
            after = {"entries": entries, "positions": positions}
            tx.record(RecordedChange("ledger.rebuilt", world_id, world_id, after=after))
        return LedgerCheck(world_id=world_id, entries=entries, positions=positions)

    def _entries(self, session: Session, world_id: str) -> Iterator[DatedEntry]:
        """Make the entries of a world from its order log, from the archives and then from the table."""
        after = 0
        for found in archives_of(session, LOG.name, world_id):
            yield from _made(self._archives.read(found, "world_id"))
            after = found.last
        while rows := rows_after(session.connection(), world_id, after, limit=_CHUNK):
            yield from _made(rows)
            after = rows[-1]["seq"]


def _made(rows: list[dict[str, Any]]) -> Iterator[DatedEntry]:
    """Make the entries of rows of the order log. (Any: the values of its columns.)"""
    for row in rows:
        yield from entries_of(LogLine(**{name: row[name] for name in LogLine._fields}))


def _stored(connection: Connection, world_id: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a ledger with their numbers. (Any: the values of the columns.)"""
    after = 0
    while rows := ledger_rows(connection, world_id, after, _CHUNK):
        for row in rows:
            found = {name: row._mapping[name] for name in _COMPARED}
            yield row.seq, {**found, "held": bool(row.held)}
        after = rows[-1].seq


def _other_positions(held: Held, stored: dict[PositionKey, tuple[str, str, bool]]) -> list[str]:
    made = {
        key: (at, after.model_dump_json(exclude_defaults=True), bool(after.quantity))
        for key, (at, after) in held.items()
    }
    return [
        f"position {key}: the log makes {made.get(key)}, the ledger has {stored.get(key)}"
        for key in sorted(made.keys() | stored.keys())
        if made.get(key) != stored.get(key)
    ]
