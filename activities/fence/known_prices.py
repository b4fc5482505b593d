"""What the service itself knows of the prices of symbols, whoever traded them."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal

from sqlalchemy import Connection

from activities.ledger.marks import newest_marks
from qmtl_sdk.contracts.ledger import PositionKey


def known_prices(
    connection: Connection, keys: Iterable[PositionKey], given: Mapping[str, Decimal]
) -> dict[tuple[str, str], Decimal]:
    """Return the newest marks of symbols at their accounts, or the prices that are given for them."""
    symbols = defaultdict[str, set[str]](set)
    for key in keys:
        symbols[key.account].add(key.symbol)
    found = dict[tuple[str, str], Decimal]()
    for account, wanted in symbols.items():
        marks = newest_marks(connection, account, wanted)
        prices = {symbol: marks.get(symbol) or given.get(symbol) for symbol in wanted}
        found |= {(account, symbol): price for symbol, price in prices.items() if price}
    return found
