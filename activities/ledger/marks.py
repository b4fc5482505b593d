"""The newest prices of symbols that the ledger knows at an account, whoever traded them there."""

from collections.abc import Collection
from decimal import Decimal

from sqlalchemy import Connection, select

from activities.storage.lists import each_of
from activities.storage.tables import PositionRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.ledger import Position

_position = table_of(PositionRow)


def newest_marks(connection: Connection, account: str, symbols: Collection[str]) -> dict[str, Decimal]:
    """Return the newest mark of each symbol at an account, of all worlds; unknown ones are left out."""
    wanted = each_of(sorted(symbols)).table_valued("value", name="value")
    # One row of each symbol, the last one in an index: hundreds of strategies may hold the same symbols.
    newest = (
        select(_position.c.after)
        .where(
            _position.c.account == account,
            _position.c.symbol == wanted.c.value,
            _position.c.marked_at > "",
        )
        .order_by(
            _position.c.account.desc(),
            _position.c.symbol.desc(),
            _position.c.marked_at.desc(),
            _position.c.world_id.desc(),
            _position.c.strategy_id.desc(),
        )
        .limit(1)
        .correlate(wanted)
        .scalar_subquery()
    )
    marks = dict[str, Decimal]()
    for symbol, after in connection.execute(select(wanted.c.value, newest)):
        if after is not None and (mark := Position.model_validate_json(after).mark):
            marks[symbol] = mark
    return marks
