"""The ledger against the order log: verify that it is what the log says, or book it anew.

The log is read through its archives, so an old world needs its archives to be whole.
"""

from collections.abc import Iterator
from functools import partial
from itertools import accumulate, islice, takewhile
from typing import Any

from sqlalchemy import Connection
from sqlmodel import Session

from activities.fence.ledger_entries import entries_of, line_of
from activities.fence.segments import LOG, rows_after
from activities.fence.state import locked_fence
from activities.ledger.booking import DatedEntry, History
from activities.ledger.exposures import Exposures, all_totals
from activities.ledger.sql import (
    Held,
    StoredPosition,
    book_entries,
    booked_row,
    current_positions,
    ledger_rows,
    remove_ledger,
)
from activities.retention.archives import LOCK, Archives, archives_of
from activities.retention.day_sums import CHUNK, MOST_DIFFERENCES, DaySums, named_differences
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Entry, LedgerCheck, Position, PositionKey

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
            stored_exposures = all_totals(session.connection(), world_id)
            days = DaySums(session.connection(), world_id)
            found = next(stored, None)
            for entries, (is_archived, dated) in enumerate(self._entries(session, world_id), 1):
                before = held[dated.key][1] if dated.key in held else Position()
                made = booked_row(dated, held, partial(self._history, session, world_id, dated.entry))
                exposures.move(dated.key, dated.entry.kind, before, held[dated.key])
                days.compare_ended(exposures)
                if is_archived and (found is None or found["ref"] != made["ref"]):
                    continue  # removed with the rows that it follows from
                if found != made:
                    differences.append(f"entry {entries}: the log makes {made}, the ledger has {found}")
                found = next(stored, None)
                if len(differences) == MOST_DIFFERENCES:
                    break
            else:
                more = ([found] if found else []) + list(islice(stored, 9))
                differences += [f"the log makes no entry {row}" for row in more]
                differences += _other_positions(held, positions)
                differences += named_differences("exposure", exposures.found, stored_exposures)
                differences += days.differences_of(exposures)
        return LedgerCheck(
            world_id=world_id,
            entries=entries,
            positions=len(positions),
            differences=tuple(text[:500] for text in differences[:MOST_DIFFERENCES]),
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
                if len(chunk) == CHUNK:
                    book_entries(tx, world_id, chunk)
                    chunk = []
            book_entries(tx, world_id, chunk)
            positions = len(current_positions(tx.connection, world_id))
            after = {"entries": entries, "positions": positions}
            tx.record(RecordedChange("ledger.rebuilt", world_id, world_id, after=after))
        return LedgerCheck(world_id=world_id, entries=entries, positions=positions)

    def _history(self, session: Session, world_id: str, entry: Entry, key: PositionKey) -> History:
        """Read the log again for a reversal: the entries of its position before it."""
        made = (dated for _, dated in self._entries(session, world_id))
        before = takewhile(lambda dated: dated.entry.ref != entry.ref, made)
        mine = [dated for dated in before if dated.key == key]
        times = accumulate((dated.at for dated in mine), max)  # as `booked_row` makes them
        return History(entries=tuple(map(DatedEntry, times, (dated.entry for dated in mine))))

    def _entries(self, session: Session, world_id: str) -> Iterator[tuple[bool, DatedEntry]]:
        """Make the entries of a world from its order log, each with whether its row is archived."""
        after = 0
        for found in archives_of(session, LOG.name, world_id):
            for row in self._archives.read(found, "world_id"):
                yield from ((True, dated) for dated in entries_of(line_of(row)))
            after = found.last
        while rows := rows_after(session.connection(), world_id, after, limit=CHUNK):
            for row in rows:
                yield from ((False, dated) for dated in entries_of(line_of(row)))
            after = rows[-1]["seq"]


def _stored(connection: Connection, world_id: str) -> Iterator[dict[str, Any]]:
    """Read the rows of a ledger, oldest first. (Any: the values of the columns.)"""
    after = 0
    while rows := ledger_rows(connection, world_id, after, CHUNK):
        for row in rows:
            found = {name: row._mapping[name] for name in _COMPARED}
            yield {**found, "held": bool(row.held)}
        after = rows[-1].seq


def _other_positions(held: Held, stored: dict[PositionKey, StoredPosition]) -> list[str]:
    made = {
        key: StoredPosition(
            at, after.marked_at, after.model_dump_json(exclude_defaults=True), bool(after.quantity)
        )
        for key, (at, after) in held.items()
    }
    return named_differences("position", made, stored)
