"""What the rows of the order log book in the ledger, as a pure function: the ledger can be made from them."""

from collections.abc import Mapping
from typing import Any

from activities.fence.log_line import BOOKING, FILL, LogLine
from activities.ledger.booking import DatedEntry
from qmtl_sdk.contracts.amounts import EXACT, negated
from qmtl_sdk.contracts.fills import Fill, OrderFills, Side
from qmtl_sdk.contracts.ledger import Entry, EntryKind
from qmtl_sdk.contracts.orders import ENDED, OrderState

HAS_FILLS = frozenset({FILL, OrderState.PARTIALLY_FILLED.value, *(state.value for state in ENDED)})
"""The kinds of rows whose body, where there is one, holds new fills of their order."""


def entries_of(line: LogLine) -> list[DatedEntry]:
    """Return the entries that follow from a row, in their order. Raises ValueError where it can't be read."""
    if line.kind == BOOKING:
        return [DatedEntry(line.at, Entry.model_validate_json(line.body))]
    if line.kind not in HAS_FILLS or not line.body:
        return []
    found = OrderFills.model_validate_json(line.body)
    return [
        DatedEntry(line.at, fill_entry(line.ref, line.strategy_id, found.symbol, found.side, fill))
        for fill in found.fills
    ]


def line_of(row: Mapping[str, Any]) -> LogLine:
    """Return a row of the order log as a line. (Any: the values of its columns.)"""
    return LogLine(**{name: row[name] for name in LogLine._fields})


def fill_entry(order_id: str, strategy_id: str, symbol: str, side: Side, fill: Fill) -> Entry:
    """Return what a fill of an order books.

    Units that the venue kept as its fee count as sold at the price of the fill, and as a fee of that amount:
    the position is what the venue holds, and the cash what it has moved.
    """
    quantity = fill.quantity if side == "buy" else negated(fill.quantity)
    return Entry(
        kind=EntryKind.FILL,
        ref=fill_ref(symbol, fill.fill_id),
        strategy_id=strategy_id,
        account=fill.account,
        symbol=symbol,
        order_id=order_id,
        quantity=EXACT.subtract(quantity, fill.fee_units),
        price=fill.price,
        fee=fill.whole_fee,
        at=fill.at,
    )


def fill_ref(symbol: str, fill_id: str) -> str:
    """Return the name of a fill's entry, which no other entry of its account can have.

    With the symbol: some venues number the fills of each symbol by themselves.
    """
    return f"fill:{symbol}:{fill_id}"


def reversal_ref(symbol: str, fill_id: str) -> str:
    """Return the name of the entry that takes a fill back: it can be taken back once."""
    return f"reversal:{symbol}:{fill_id}"
