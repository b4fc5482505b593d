"""The ledger against the order log: verify that it is what the log says, or book it anew.

The log is read through its archives, so an old world needs its archives to be whole.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice, takewhile
from typing import Any

from sqlalchemy import Connection
from sqlmodel import Session

from activities.fence.ledger_entries import entries_of, line_of
from activities.fence.segments import LOG, rows_after
from activities.fence.state import locked_fence
from activities.ledger.booking import History
from activities.ledger.exposures import Exposure, ExposureKey, Exposures, all_exposures
from activities.ledger.sql import (
    DatedEntry,
    Held,
    book_entries,
    booked_row,
    current_positions,
    ledger_rows,
    remove_ledger,
)
from activities.retention.archives import LOCK, Archives, archives_of
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Entry, LedgerCheck, Position, PositionKey

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
        differences, held, entries = list[str](), Held(), 0
        exposures = Exposures()
        with self._database.read() as session:
            world_row(session, world_id)
            stored = _stored(session.connection(), world_id)
            positions = current_positions(session.connection(), world_id)
            stored_exposures = all_exposures(session.connection(), world_id)
            found = next(stored, None)
            for entries, (is_archived, dated) in enumerate(self._entries(session, world_id), 1):
                before = held[dated.key][1] if dated.key in held else Position()
                made = booked_row(dated, held, partial(self._history, session, world_id, dated.entry))
                exposures.move(dated.key, before, held[dated.key][1])
                if is_archived and (found is None or found["ref"] != made["ref"]):
                    continue  # removed with the rows that it follows from
                if found != made:
                    differences.append(f"entry {entries}: the log makes {made}, the ledger has {found}")
                found = next(stored, None)
                if len(differences) == _MOST_DIFFERENCES:
                    break
            else:
                more = ([found] if found else []) + list(islice(stored, 9))
                differences += [f"the log makes no entry {row}" for row in more]
                differences += _other_positions(held, positions)
                differences += _other_exposures(exposures, stored_exposures)
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
            for _, dated in self._entries(tx.session, world_id):
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

    def _history(self, session: Session, world_id: str, entry: Entry, key: PositionKey) -> History:
        """Read the log again for a reversal: the entries of its position before it."""
        before = takewhile(
            lambda item: item.ref != entry.ref, (dated.entry for _, dated in self._entries(session, world_id))
        )
        return History(entries=tuple(item for item in before if DatedEntry("", item).key == key))

    def _entries(self, session: Session, world_id: str) -> Iterator[tuple[bool, DatedEntry]]:
        """Make the entries of a world from its order log, each with whether its row is archived."""
        after = 0
        for found in archives_of(session, LOG.name, world_id):
            for row in self._archives.read(found, "world_id"):
                yield from ((True, dated) for dated in entries_of(line_of(row)))
            after = found.last
        while rows := rows_after(session.connection(), world_id, after, limit=_CHUNK):
            for row in rows:
                yield from ((False, dated) for dated in entries_of(line_of(row)))
            after = rows[-1]["seq"]


def _stored(connection: Connection, world_id: str) -> Iterator[dict[str, Any]]:
    """Read the rows of a ledger, oldest first. (Any: the values of the columns.)"""
    after = 0
    while rows := ledger_rows(connection, world_id, after, _CHUNK):
        for row in rows:
            found = {name: row._mapping[name] for name in _COMPARED}
            yield {**found, "held": bool(row.held)}
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


def _other_exposures(made: Exposures, stored: dict[ExposureKey, Exposure]) -> list[str]:
    return [
        f"exposure {key}: the log makes {made.found.get(key)}, the ledger has {stored.get(key)}"
        for key in sorted(made.found.keys() | stored.keys())
        if made.found.get(key) != stored.get(key)
    ]
