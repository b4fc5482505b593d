"""What the ledgers of all worlds hold at one account."""

from collections import defaultdict
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, literal, select, text, tuple_

from activities.storage.tables import PositionRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO
from qmtl_sdk.contracts.ledger import Position

_position = table_of(PositionRow)
# The condition of the index `position_account`, in its exact words.
_HELD = text("position.held")
# Positions in one statement.
_PAGE = 1000

Holdings = dict[str, dict[str, Decimal]]
"""What worlds hold at an account: by symbol, then by world."""

_KEY = (_position.c.symbol, _position.c.world_id, _position.c.strategy_id)


def holdings_of(connection: Connection, account: str) -> Holdings:
    """Read what each world holds of each symbol at an account, over all of its strategies."""
    found: defaultdict[str, dict[str, Decimal]] = defaultdict(dict)
    query = select(*_KEY, _position.c.after).where(_position.c.account == account, _HELD)
    query = query.order_by(*_KEY).limit(_PAGE)
    rows: Any = connection.execute(query).all()  # Any: several columns
    while rows:
        for row in rows:
            quantity = Position.model_validate_json(row.after).quantity
            held = found[row.symbol]
            held[row.world_id] = EXACT.add(held.get(row.world_id, ZERO), quantity)
        if len(rows) < _PAGE:
            break
        last = tuple_(*(literal(value) for value in rows[-1][:3]))
        rows = connection.execute(query.where(tuple_(*_KEY) > last)).all()
    return dict(found)
