"""Booking, as pure functions: what an entry makes of a position, and its postings in double entry.

Products are rounded to the twelve places of amounts once, when they are booked; from there on every sum is
exact: cash = realised + income - fees - cost, to the last digit, whatever was booked in whatever order.
"""

from collections.abc import Callable
from decimal import Decimal

from qmtl_sdk.contracts.amounts import ZERO, exact, negated, rounded, total
from qmtl_sdk.contracts.ledger import MONEY, Entry, EntryKind, Position, Posting


def book(before: Position, entry: Entry) -> tuple[Entry, Position]:
    """Return the entry with what it moves, and the position after it."""
    return _RULES[entry.kind](before, entry)


def postings(entry: Entry) -> tuple[Posting, ...]:
    """Return the two sides of each amount that a booked entry moves; they add up to zero."""
    counterpart, account, symbol = _COUNTERPARTS[entry.kind], entry.account, entry.symbol
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
    value = rounded(exact.multiply(quantity, price))
    closing_value = value if closing == quantity else rounded(exact.multiply(closing, price))
    released = _part(before.cost, negated(closing), held)
    after = before.model_copy(
        update={
            "quantity": exact.add(held, quantity),
            "cost": total((before.cost, negated(released), value, negated(closing_value))),
            "realised": total((before.realised, negated(closing_value), negated(released))),
            "fees": exact.add(before.fees, entry.fee),
            "cash": total((before.cash, negated(value), negated(entry.fee))),
            "mark": price if entry.kind is not EntryKind.REVERSAL else before.mark,
        }
    )
    return entry.model_copy(update={"cash": negated(value)}), after


def _part(cost: Decimal, closed: Decimal, held: Decimal) -> Decimal:
    """Return the cost of `closed` of the units held, at the average cost of all."""
    return rounded(exact.divide(exact.multiply(cost, closed), held)) if closed else ZERO


def _dividend(before: Position, entry: Entry) -> tuple[Entry, Position]:
    income, cash = exact.add(before.income, entry.cash), exact.add(before.cash, entry.cash)
    return entry, before.model_copy(update={"income": income, "cash": cash})


def _fee(before: Position, entry: Entry) -> tuple[Entry, Position]:
    fees, cash = exact.add(before.fees, entry.fee), exact.subtract(before.cash, entry.fee)
    return entry, before.model_copy(update={"fees": fees, "cash": cash})


def _split(before: Position, entry: Entry) -> tuple[Entry, Position]:
    """Change the number of units, which cost together what they cost before."""
    assert entry.ratio is not None
    quantity = rounded(exact.multiply(before.quantity, entry.ratio))
    mark = rounded(exact.divide(before.mark, entry.ratio))
    moved = entry.model_copy(update={"quantity": exact.subtract(quantity, before.quantity)})
    if quantity:
        return moved, before.model_copy(update={"quantity": quantity, "mark": mark})
    # So little was held that nothing is left: what it cost is lost.
    lost = {"quantity": ZERO, "cost": ZERO, "realised": exact.subtract(before.realised, before.cost)}
    return moved, before.model_copy(update={**lost, "mark": mark})


_RULES: dict[EntryKind, Callable[[Position, Entry], tuple[Entry, Position]]] = {
    EntryKind.FILL: _trade,
    EntryKind.REVERSAL: _trade,
    EntryKind.ADJUSTMENT: _trade,
    EntryKind.DIVIDEND: _dividend,
    EntryKind.FEE: _fee,
    EntryKind.SPLIT: _split,
}

_COUNTERPARTS = {
    EntryKind.FILL: "market",
    EntryKind.REVERSAL: "market",
    EntryKind.ADJUSTMENT: "adjustments",
    EntryKind.DIVIDEND: "income",
    EntryKind.FEE: "fees",
    EntryKind.SPLIT: "splits",
}
