"""Bookings: entries of the ledger that are no fill of an order, which an operator makes.

Each is a row of the order log, like a fill, so that the ledger can be made again from the log alone.
"""

from collections.abc import Mapping

from sqlalchemy import Connection

from activities.fence.fills import write_lines
from activities.fence.ledger_entries import fill_ref, reversal_ref
from activities.fence.log_line import BOOKING, LogLine
from activities.fence.state import locked_fence
from activities.ledger.sql import booked
from activities.storage.database import Database
from activities.storage.transactions import RecordedChange, utc_now
from qmtl_sdk.contracts.amounts import ZERO, negated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Booking, Entry, EntryKind


class SqlBookings:
    """Books entries that are no fill of an order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, world_id: str, booking: Booking, actor: str) -> bool:
        """Book an entry. Returns whether it was new; the same booking again changes nothing.

        Raises QmtlError: E_WORLD_UNKNOWN; E_FILL_UNKNOWN where the fill to take back is not booked for this
        strategy, account and symbol; E_FILL_REUSED where the id was used with another content.
        """
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            entry = _entry(tx.connection, world_id, booking)
            before = booked(tx.connection, world_id, booking.account, [entry.ref]).get(entry.ref)
            if before is not None:
                if _asked(before) != _asked(entry):
                    raise QmtlError(
                        "E_FILL_REUSED",
                        f"{entry.ref} of {booking.account} was booked before with another content",
                        "an id is used once; use a new one for another booking",
                    )
                return False
            body = entry.model_dump_json(exclude_defaults=True)
            line = LogLine(
                utc_now(),
                world_id,
                BOOKING,
                entry.ref,
                fence.epoch,
                booking.strategy_id,
                booking.reason,
                body,
            )
            write_lines(tx, world_id, [line])
            after = booking.model_dump(mode="json", exclude_none=True)
            tx.record(RecordedChange("ledger.booked", world_id, world_id, after=after))
            return True


def _entry(connection: Connection, world_id: str, booking: Booking) -> Entry:
    """Build the entry. Raises QmtlError (E_FILL_UNKNOWN)."""
    about = {
        "ref": f"booking:{booking.booking_id}",
        "strategy_id": booking.strategy_id,
        "account": booking.account,
        "symbol": booking.symbol,
        "reason": booking.reason,
        "at": booking.at,
    }
    if booking.corrects is not None:
        return _reversal(connection, world_id, booking, about)
    return Entry.model_validate(
        about
        | {
            "kind": booking.kind,
            "cash": booking.amount if booking.kind == "dividend" else ZERO,
            "fee": booking.amount if booking.kind == "fee" else ZERO,
            "ratio": booking.ratio,
            "quantity": booking.quantity or ZERO,
            "price": booking.price or ZERO,
        }
    )


def _reversal(connection: Connection, world_id: str, booking: Booking, about: Mapping[str, object]) -> Entry:
    assert booking.corrects is not None
    ref = fill_ref(booking.corrects)
    fill = booked(connection, world_id, booking.account, [ref]).get(ref)
    if fill is None or (fill.strategy_id, fill.symbol) != (booking.strategy_id, booking.symbol):
        raise QmtlError(
            "E_FILL_UNKNOWN",
            f"{booking.account} has no fill {booking.corrects} of {booking.symbol} for this strategy",
            "qmtl world ledger W lists the entries",
        )
    return Entry.model_validate(
        {
            **about,
            "kind": EntryKind.REVERSAL,
            "ref": reversal_ref(booking.corrects),
            "order_id": fill.order_id,
            "quantity": negated(fill.quantity),
            "price": fill.price,
            "fee": negated(fill.fee),
        }
    )


def _asked(entry: Entry) -> tuple[object, ...]:
    """Return what two requests of one booking agree in: not what booking it made of it."""
    moved = entry.kind is EntryKind.SPLIT
    return (
        entry.kind,
        entry.strategy_id,
        entry.symbol,
        entry.fee,
        entry.ratio,
        entry.price,
        None if moved else entry.quantity,
        entry.cash if entry.kind is EntryKind.DIVIDEND else None,
    )
