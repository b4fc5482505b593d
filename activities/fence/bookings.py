"""Bookings: entries of the ledger that are no fill of an order, which an operator makes.

Each is a row of the order log, like a fill, so that the ledger can be made again from the log alone.
"""

from collections.abc import Mapping

from sqlalchemy import Connection
from sqlmodel import select

from activities.fence.fills import accepted_orders, note_filled, write_lines
from activities.fence.flattening import continue_flattens
from activities.fence.ledger_entries import fill_ref, reversal_ref
from activities.fence.log_line import BOOKING, LogLine
from activities.fence.state import locked_fence
from activities.ledger.booking import book
from activities.ledger.sql import booked, history_of, positions_of
from activities.storage.database import Database
from activities.storage.tables import BindingRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, ZERO
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import Booking, Entry, EntryKind, PositionKey


class SqlBookings:
    """Books entries that are no fill of an order."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, world_id: str, booking: Booking, actor: str) -> bool:
        """Book an entry. Returns whether it was new; the same booking again changes nothing.

        Raises QmtlError: E_WORLD_UNKNOWN, E_STRATEGY_UNKNOWN; E_BOOKING where there is no such position, or a
        split makes numbers that no amount can hold; E_FILL_UNKNOWN where the fill to take back is not booked
        for this strategy, account and symbol; E_BOOKING_REUSED where the id was used with another content.
        """
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            entry = _entry(tx.connection, world_id, booking)
            before = booked(tx.connection, world_id, booking.account, [entry.ref]).get(entry.ref)
            if before is not None:
                if _asked(before) != _asked(entry):
                    raise QmtlError(
                        "E_BOOKING_REUSED",
                        f"{entry.ref} of {booking.account} was booked before with another content",
                        "an id is used once; use a new one for another booking",
                    )
                return False
            _require_position(tx, world_id, booking)
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
            for order in accepted_orders(tx.connection, world_id, [entry.order_id]).values():
                note_filled(tx.connection, order)
            continue_flattens(tx, fence, [booking.strategy_id])
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
    ref = fill_ref(booking.symbol, booking.corrects)
    fill = booked(connection, world_id, booking.account, [ref]).get(ref)
    key = PositionKey(booking.strategy_id, booking.account, booking.symbol)
    if fill is None or fill not in (entry for _, entry in history_of(connection, world_id, key).entries):
        raise QmtlError(
            "E_FILL_UNKNOWN",
            f"{booking.account} has no fill {booking.corrects} of {booking.symbol} for this strategy, "
            "or it is too old to be taken back",
            "qmtl world ledger W lists the entries; in place of an old one, book an adjustment",
        )
    return Entry.model_validate(
        {
            **about,
            "kind": EntryKind.REVERSAL,
            "ref": reversal_ref(booking.symbol, booking.corrects),
            "reverses": ref,
            "order_id": fill.order_id,
        }
    )


def _require_position(tx: Transaction, world_id: str, booking: Booking) -> None:
    """Check that the booking is of a position that there is. Raises QmtlError."""
    mine = (BindingRow.world_id == world_id, BindingRow.strategy_id == booking.strategy_id)
    if tx.session.exec(select(BindingRow.seq).where(*mine)).first() is None:
        raise QmtlError(
            "E_STRATEGY_UNKNOWN",
            f"world {world_id} has no strategy {booking.strategy_id[:40]}",
            "qmtl world show W lists them",
        )
    key = PositionKey(booking.strategy_id, booking.account, booking.symbol)
    held = positions_of(tx.connection, world_id, [key]).get(key)
    if held is None and booking.kind != "adjustment":
        raise QmtlError(
            "E_BOOKING",
            f"{booking.account} has never held {booking.symbol} for this strategy",
            "check account and symbol: qmtl world positions W --closed lists what was held",
        )
    if held is not None and booking.ratio is not None:
        _, split = book(held[1], Entry(kind=EntryKind.SPLIT, ref="r", ratio=booking.ratio, **key._asdict()))
        if max(split.quantity.copy_abs(), split.mark) >= AMOUNT_LIMIT:
            raise QmtlError(
                "E_BOOKING",
                f"the split makes {split.quantity} units at {split.mark}, more than an amount can hold",
                "check the ratio: new units for each old one",
            )


def _asked(entry: Entry) -> tuple[object, ...]:
    """Return what two requests of one booking agree in: not what booking it made of it."""
    about = (entry.kind, entry.strategy_id, entry.symbol, entry.reverses)
    if entry.kind is EntryKind.REVERSAL:
        return about
    if entry.kind is EntryKind.SPLIT:
        return (*about, entry.ratio)
    cash = entry.cash if entry.kind is EntryKind.DIVIDEND else ZERO
    return (*about, entry.fee, entry.price, entry.quantity, cash)
