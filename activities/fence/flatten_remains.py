"""What flattens have not closed yet, and what each position waits for, or why nobody closes it.

(Any, here: the columns of `FlatteningRow`.)
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from activities.fence.flatten_faults import faults_of
from activities.fence.flatten_holdings import Holdings
from activities.fence.flattening_rows import ended_rows, flattening_rows
from activities.ledger.sql import held_positions
from activities.order_settings import Accounts
from activities.storage.tables import OpenOrderRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import ZERO
from qmtl_sdk.contracts.flattening import Unflattened
from qmtl_sdk.contracts.ledger import PositionKey

_open = table_of(OpenOrderRow)

_NOBODY = "nobody closes it: "


def remains_of(
    connection: Connection, world_id: str, strategies: Sequence[str] | None, accounts: Accounts
) -> tuple[Unflattened, ...]:
    """Return what is held and what may fill, of strategies of a world or of all, with what each waits for."""
    under_way = flattening_rows(connection, world_id, strategies)
    over = ended_rows(connection, world_id, strategies)
    rows = {(row.strategy_id, row.account): row for row in (*over, *under_way)}
    places = {(row.strategy_id, row.execution_domain): row.account for row in under_way}
    mine = [_open.c.world_id == world_id]
    if strategies is not None:
        mine.append(_open.c.strategy_id.in_(strategies))
    opened = Counter[PositionKey]()
    query = select(_open.c.strategy_id, _open.c.execution_domain, _open.c.symbol).where(*mine)
    for strategy_id, domain, symbol in connection.execute(query):
        if (strategy_id, domain) in places:
            opened[PositionKey(strategy_id, places[strategy_id, domain], symbol)] += 1
    held = {key: item.quantity for key, item in held_positions(connection, world_id, strategies).items()}
    holdings = Holdings.read(connection, world_id, sorted({key[0] for key in rows}))
    found = list[Unflattened]()
    for key in sorted(held.keys() | opened.keys()):
        row = rows.get(key[:2])
        waits_for = _waits_for(key, row, opened[key], holdings)
        why = waits_for or _NOBODY + _why_left(key, row, holdings, accounts)
        item = Unflattened(
            **key._asdict(), quantity=held.get(key, ZERO), under_way=bool(waits_for), waits_for=why
        )
        found.append(item)
    return tuple(found)


def left_behind(connection: Connection, world_id: str) -> tuple[Unflattened, ...]:
    """Return what flattens of a world have left: less than a lot, or symbols whose orders failed."""
    under_way = [row for row in flattening_rows(connection, world_id, None) if not row.cancel_reason]
    rows = [*ended_rows(connection, world_id, None), *under_way]
    if not rows:
        return ()
    holdings = Holdings.read(connection, world_id, sorted({row.strategy_id for row in rows}))
    return tuple(
        Unflattened(
            strategy_id=row.strategy_id,
            account=row.account,
            symbol=symbol,
            quantity=quantity,
            under_way=False,
            waits_for=f"{_NOBODY}{why}",
        )
        for row in rows
        for symbol, (quantity, why) in holdings.left(row).items()
    )


def _waits_for(key: PositionKey, row: Any, opened: int, holdings: Holdings) -> str:
    """Say what the end of a position waits for; empty where nobody closes it."""
    if row is None or row.cancel_reason or row.ended_at:
        return ""
    if not opened and key.symbol in holdings.left(row):
        return ""
    orders = "the end of 1 open order" if opened == 1 else f"the end of {opened} open orders"
    fault = faults_of(row).get(key.symbol)
    if fault is None or not fault.next_at:
        return orders
    again = f"another order at {fault.next_at}, since the last one was {fault.said}"
    return f"{orders}, and {again}" if opened else again


def _why_left(key: PositionKey, row: Any, holdings: Holdings, accounts: Accounts) -> str:
    if row is None and key.account not in accounts.values():
        return f"no domain trades in the account {key.account}"
    left = holdings.left(row) if row is not None else {}
    if key.symbol not in left:
        return "its strategy has traded since, or somebody cancelled the flatten"
    return left[key.symbol][1]
