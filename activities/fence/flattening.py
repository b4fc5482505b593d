"""Close what strategies hold, by orders that only reduce, whatever has closed the world.

1. `begin_flattens` writes a row for each strategy and domain with a position or an open order.
2. `continue_flattens` works rows: it cancels the strategies' own orders, takes back orders of flattens that
   are too much, and orders what is missing (`reductions.py`). The row of a strategy that holds nothing and
   has no open order goes.
3. Every transaction in which an order of a strategy with a row ends or fills, or is about to be sent, and
   every one that books its position otherwise, continues the flatten. What cannot be ordered yet waits for
   the end of an open order, which the router records; or, where a venue has ended an order of the flatten,
   for a time (`next_at` of the row), at which a loop of each Gateway continues it.
4. What is less than a lot is not ordered, and a symbol whose orders fail again and again is given up
   (`flatten_faults.py`). When nothing else is left, the flatten is over, and its row says what stays.

While the row is there, the strategy's own orders end before they are sent: together with those of the flatten
they could cross zero. Afterwards it may trade again, unless it is halted.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, select, tuple_

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.flatten_faults import fault_values, faults_of, without_pauses
from activities.fence.flatten_holdings import Holdings
from activities.fence.flattening_rows import (
    POSITION_CHANGED,
    add_rows,
    end_rows,
    flattening_rows,
    note_ends,
    record_given_up,
    set_rows,
)
from activities.fence.log_line import LogLine
from activities.fence.rules import FLATTEN
from activities.fence.service_orders import accept_orders
from activities.ledger.sql import held_positions
from activities.order_settings import Accounts
from activities.storage.tables import FenceRow, OpenOrderRow
from activities.storage.transactions import Transaction, table_of, utc_now
from qmtl_sdk.contracts.orders import MAX_REASON, CancelResult, Order

_open = table_of(OpenOrderRow)


class Begun(NamedTuple):
    """What beginning a flatten did at once."""

    stopped: CancelResult
    ordered: list[Order]


def begin_flattens(
    tx: Transaction,
    fence: FenceRow,
    flatten_id: str,
    accounts: Accounts,
    strategies: Sequence[str] | None = None,
) -> Begun:
    """Begin to close what these strategies of a world hold, or all of them. The caller holds the fence.

    The flatten of a strategy that is under way goes on, at once where it waited for a time, and also with
    symbols that it had given up.
    """
    places = _places(tx.connection, fence.world_id, accounts, strategies)
    add_rows(tx, fence.world_id, flatten_id, places)
    which = sorted({strategy for strategy, _, _ in places})
    stopped = _cancel_own(tx, fence, which)
    return Begun(stopped, continue_flattens(tx, fence, which))


def continue_flattens(
    tx: Transaction,
    fence: FenceRow,
    strategies: Collection[str] | None = None,
    lines: Sequence[LogLine] = (),
) -> list[Order]:
    """Work the flattens of these strategies, or of all in the world. The caller holds the fence.

    `lines` are rows of the log that the router has just written for what venues report. Returns the orders
    that were made.
    """
    rows = flattening_rows(tx.connection, fence.world_id, strategies)
    if not rows:  # nearly always
        return []
    noted = note_ends(tx.connection, rows, lines)
    if noted.changed:
        rows = flattening_rows(tx.connection, fence.world_id, strategies)
    which = sorted({row.strategy_id for row in rows})
    _cancel_own(tx, fence, which)
    found = Holdings.read(tx.connection, fence.world_id, which)
    surplus = [order_id for row in rows for order_id in found.surplus(row)]
    if surplus:
        these = Selection(order_ids=surplus, flattens=True)
        cancel_open(tx, fence, POSITION_CHANGED, True, these)
        found = Holdings.read(tx.connection, fence.world_id, which)
    now = utc_now()
    orders = [order for row in rows if not row.cancel_reason for order in found.orders(row, fence.epoch, now)]
    accept_orders(tx, fence, orders)
    for row in rows:
        if row.next_at and row.next_at <= now:
            set_rows(tx.connection, [row], **fault_values(without_pauses(faults_of(row), now)))
    record_given_up(tx, [(row, symbol) for row in rows for symbol in noted.of(row)], found)
    end_rows(tx, [row for row in rows if found.is_over(row)], found)
    return orders


def cancel_flattens(tx: Transaction, fence: FenceRow, order_ids: Sequence[str] | None, why: str) -> list[str]:
    """Order nothing more for the flattens of these orders, or all of the world: a person cancels them.

    Returns the ids of all their open orders, for the caller to cancel. The rows stay until they have ended:
    an order that was sent may still fill.
    """
    mine = (_open.c.world_id == fence.world_id, _open.c.origin == FLATTEN)
    place = (_open.c.strategy_id, _open.c.execution_domain)
    rows = flattening_rows(tx.connection, fence.world_id, None)
    if order_ids is not None:
        named = select(*place).where(*mine, _open.c.order_id.in_(order_ids))
        places = {(row[0], row[1]) for row in tx.connection.execute(named)}
        rows = [row for row in rows if (row.strategy_id, row.execution_domain) in places]
    if not rows:
        return []
    set_rows(tx.connection, rows, cancel_reason=why[:MAX_REASON])
    theirs = tuple_(*place).in_([(row.strategy_id, row.execution_domain) for row in rows])
    return list(tx.connection.execute(select(_open.c.order_id).where(*mine, theirs)).scalars())


def _places(
    connection: Connection, world_id: str, accounts: Accounts, strategies: Sequence[str] | None
) -> set[tuple[str, str, str]]:
    """Return strategy, domain and account wherever something is held or may fill."""
    held = held_positions(connection, world_id, strategies)
    mine = [_open.c.world_id == world_id]
    if strategies is not None:
        mine.append(_open.c.strategy_id.in_(strategies))
    query = select(_open.c.strategy_id, _open.c.execution_domain).where(*mine).distinct()
    opened = {(row[0], row[1]) for row in connection.execute(query)}
    strategy_ids = {key.strategy_id for key in held} | {strategy_id for strategy_id, _ in opened}
    holders = {(key.strategy_id, key.account) for key in held}
    return {
        (strategy_id, domain.value, account)
        for domain, account in accounts.items()
        for strategy_id in strategy_ids
        if (strategy_id, account) in holders or (strategy_id, domain.value) in opened
    }


def _cancel_own(tx: Transaction, fence: FenceRow, strategies: Sequence[str]) -> CancelResult:
    """Cancel the open orders of strategies, but for those of flattens."""
    return cancel_open(tx, fence, "its strategy is being flattened", True, Selection(strategies=strategies))
