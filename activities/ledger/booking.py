"""Booking, as pure functions: what an entry makes of a position, and its postings in double entry.

Products are rounded to the twelve places of amounts once, when they are booked; from there on every sum is
exact: cash = realised + income - fees - cost, to the last digit, whatever was booked in whatever order.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum, negated, plain, quotient, rounded
from qmtl_sdk.contracts.ledger import MONEY, Entry, EntryKind, Position, PositionKey, Posting


class DatedEntry(NamedTuple):
    """An entry and when it was recorded (ISO 8601, UTC)."""

    at: str
    entry: Entry

    @property
    def key(self) -> PositionKey:
        """Whose position it changes."""
        return PositionKey(self.entry.strategy_id, self.entry.account, self.entry.symbol)


def book(before: Position, entry: Entry, at: str = "") -> tuple[Entry, Position]:
    """Return the entry with what it moves, and the position after it. Reversals are for `reverse`.

    `at`: when it is recorded, which is the time of the mark where the entry has a price.
    """
    moved, after = _RULES[entry.kind](before, entry)
    if entry.kind in _PRICED:
        after = after.model_copy(update={"marked_at": at})
    return moved, _written_alike(after)


def _written_alike(position: Position) -> Position:
    """Return the same position with each number written in one way.

    A sum such as 13.5 - 13.5 is 0.0 in memory and 0 once it was stored: what follows from the one would read
    differently from what follows from the other.
    """
    return position.model_copy(update={name: plain(getattr(position, name)) for name in _NUMBERS})


@dataclass(frozen=True)
class History:
    """The entries of a position, oldest first, after those that gave it its state `base`."""

    base: Position = field(default_factory=Position)
    entries: tuple[DatedEntry, ...] = ()


def reverse(before: Position, entry: Entry, history: History) -> tuple[Entry, Position]:
    """Take an entry back: return the position that there would be if it had never been booked.

    The entry moves the difference. `history` holds all entries before this one, from the one that is taken
    back on at the latest.
    """
    reversals = (each.reverses for _, each in history.entries if each.kind is EntryKind.REVERSAL)
    gone = {entry.reverses, *reversals}
    after = history.base
    for at, each in history.entries:
        if each.kind is not EntryKind.REVERSAL and each.ref not in gone:
            _, after = book(after, each, at)
    fee = EXACT.subtract(after.fees, before.fees)
    moved = {
        "quantity": EXACT.subtract(after.quantity, before.quantity),
        "cash": exact_sum((after.cash, negated(before.cash), fee)),
        "fee": fee,
    }
    return entry.model_copy(update={name: plain(value) for name, value in moved.items()}), after


def postings(entry: Entry) -> tuple[Posting, ...]:
    """Return the two sides of each amount that a booked entry moves; they add up to zero."""
    counterpart, account, symbol = _COUNTERPARTS.get(entry.kind, ""), entry.account, entry.symbol
    moved = (
        (f"position:{account}", counterpart, symbol, entry.quantity),
        (f"cash:{account}", counterpart, MONEY, entry.cash),
        (f"fees:{account}", f"cash:{account}", MONEY, entry.fee),
    )
    return tuple(
        Posting(account=name, commodity=commodity, amount=signed)
        for to, source, commodity, amount in moved
        if amount
        for name, signed in ((to, amount), (source, negated(amount)))
    )


def _trade(before: Position, entry: Entry) -> tuple[Entry, Position]:
    """Buy or sell at a price: close what is held the other way at its average cost, and open the rest."""
    quantity, price = entry.quantity, entry.price
    held = before.quantity
    closing = ZERO if held * quantity >= 0 else min(quantity, negated(held), key=Decimal.copy_abs)
    value = rounded(EXACT.multiply(quantity, price))
    closing_value = value if closing == quantity else rounded(EXACT.multiply(closing, price))
    released = _part(before.cost, negated(closing), held)
    after = before.model_copy(
        update={
            "quantity": EXACT.add(held, quantity),
            "cost": exact_sum((before.cost, negated(released), value, negated(closing_value))),
            "realised": exact_sum((before.realised, negated(closing_value), negated(released))),
            "fees": EXACT.add(before.fees, entry.fee),
            "cash": exact_sum((before.cash, negated(value), negated(entry.fee))),
            "mark": price,
        }
    )
    return entry.model_copy(update={"cash": negated(value)}), after


def _part(cost: Decimal, closed: Decimal, held: Decimal) -> Decimal:
    """Return the cost of `closed` of the units held, at the average cost of all."""
    return quotient(EXACT.multiply(cost, closed), held) if closed else ZERO


def _dividend(before: Position, entry: Entry) -> tuple[Entry, Position]:
    income, cash = EXACT.add(before.income, entry.cash), EXACT.add(before.cash, entry.cash)
    return entry, before.model_copy(update={"income": income, "cash": cash})


def _fee(before: Position, entry: Entry) -> tuple[Entry, Position]:
    fees, cash = EXACT.add(before.fees, entry.fee), EXACT.subtract(before.cash, entry.fee)
    return entry, before.model_copy(update={"fees": fees, "cash": cash})


def _split(before: Position, entry: Entry) -> tuple[Entry, Position]:
    """Change the number of units, which cost together what they cost before."""
    assert entry.ratio is not None
    quantity = rounded(EXACT.multiply(before.quantity, entry.ratio))
    mark = quotient(before.mark, entry.ratio)
    moved = entry.model_copy(update={"quantity": plain(EXACT.subtract(quantity, before.quantity))})
    if quantity:
        return moved, before.model_copy(update={"quantity": quantity, "mark": mark})
    # So little was held that nothing is left: what it cost is lost.
    lost = {"quantity": ZERO, "cost": ZERO, "realised": EXACT.subtract(before.realised, before.cost)}
    return moved, before.model_copy(update={**lost, "mark": mark})


_RULES: dict[EntryKind, Callable[[Position, Entry], tuple[Entry, Position]]] = {
    EntryKind.FILL: _trade,
    EntryKind.ADJUSTMENT: _trade,
    EntryKind.DIVIDEND: _dividend,
    EntryKind.FEE: _fee,
    EntryKind.SPLIT: _split,
}

_PRICED = frozenset({EntryKind.FILL, EntryKind.ADJUSTMENT})

_NUMBERS = tuple(name for name in Position.model_fields if name != "marked_at")

_COUNTERPARTS = {
    EntryKind.FILL: "market",
    EntryKind.REVERSAL: "market",
    EntryKind.ADJUSTMENT: "adjustments",
    EntryKind.DIVIDEND: "income",
    EntryKind.SPLIT: "splits",
}
