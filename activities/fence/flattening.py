"""Close what strategies hold, by orders that only reduce, whatever has closed the world.

1. `begin_flattens` writes a row for each strategy and domain with a position or an open order.
2. `continue_flattens` works rows: it cancels the strategies' own orders, takes back orders of flattens that
   are too much, and orders what is missing (`reductions.py`). The row of a strategy that holds nothing and
   has no open order goes.
3. Every transaction in which an order of a strategy with a row ends or fills, or is about to be sent, and
   every one that books its position otherwise, continues the flatten. What cannot be ordered yet waits for
   the end of an open order, which the router records; or, where a venue has ended an order of the flatten,
   for a time (`next_at` of the row), at which a loop of each Gateway continues it.

While the row is there, the strategy's own orders end before they are sent: together with those of the flatten
they could cross zero. Afterwards it may trade again, unless it is halted.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Connection, select, tuple_

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.flatten_orders import flatten_order
from activities.fence.flattening_rows import add_rows, end_rows, flattening_rows, note_failures, set_rows
from activities.fence.log_line import LogLine
from activities.fence.open_order import left_to_fill
from activities.fence.reductions import OpenQuantity, Reduction, reduction
from activities.fence.rules import FLATTEN
from activities.fence.service_orders import accept_orders
from activities.ledger.sql import held_positions
from activities.order_settings import Accounts
from activities.storage.tables import FenceRow, OpenOrderRow
from activities.storage.transactions import Transaction, table_of, utc_now
from qmtl_sdk.contracts.amounts import ZERO
from qmtl_sdk.contracts.ledger import Position
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

    The flatten of a strategy that is under way goes on, at once where it waited for a time.
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
    if note_failures(tx.connection, rows, lines):
        rows = flattening_rows(tx.connection, fence.world_id, strategies)
    which = sorted({row.strategy_id for row in rows})
    _cancel_own(tx, fence, which)
    found = _Holdings.read(tx.connection, fence.world_id, which)
    surplus = [order_id for row in rows for order_id in found.surplus(row)]
    if surplus:
        these = Selection(order_ids=surplus, flattens=True)
        cancel_open(tx, fence, "the position that it closes has changed", True, these)
        found = _Holdings.read(tx.connection, fence.world_id, which)
    now = utc_now()
    due = [row for row in rows if row.next_at <= now and not row.given_up]
    orders = [order for row in due for order in found.orders(row, fence.epoch)]
    accept_orders(tx, fence, orders)
    set_rows(tx.connection, [row for row in due if row.next_at], next_at="")
    end_rows(tx, [row for row in rows if found.is_over(row)])
    return orders


def give_up_flattens(
    tx: Transaction, fence: FenceRow, order_ids: Sequence[str] | None, why: str
) -> list[str]:
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
    set_rows(tx.connection, rows, given_up=why[:MAX_REASON])
    theirs = tuple_(*place).in_([(row.strategy_id, row.execution_domain) for row in rows])
    return list(tx.connection.execute(select(_open.c.order_id).where(*mine, theirs)).scalars())


@dataclass(frozen=True)
class _Holdings:
    """Positions by strategy and account, and open orders by strategy and domain, each by symbol.

    (Any, here: the columns of `FlatteningRow`.)
    """

    positions: Mapping[tuple[str, str], Mapping[str, Position]]
    opened: Mapping[tuple[str, str], Mapping[str, Sequence[OpenQuantity]]]

    @classmethod
    def read(cls, connection: Connection, world_id: str, strategies: Sequence[str]) -> "_Holdings":
        """Read what strategies hold, and their open orders."""
        positions = defaultdict[tuple[str, str], dict[str, Position]](dict)
        for key, position in held_positions(connection, world_id, strategies).items():
            positions[key.strategy_id, key.account][key.symbol] = position
        opened = defaultdict[tuple[str, str], dict[str, list[OpenQuantity]]](dict)
        mine = (_open.c.world_id == world_id, _open.c.strategy_id.in_(strategies))
        for row in connection.execute(select(_open).where(*mine).order_by(_open.c.order_id)):
            symbols = opened[row.strategy_id, row.execution_domain]
            symbols.setdefault(row.symbol, []).append(_open_quantity(row))
        return cls(positions, opened)

    def surplus(self, row: Any) -> list[str]:
        """Return the orders of a flatten that are too much."""
        return [order_id for symbol in self._opened(row) for order_id in self._reduction(row, symbol).surplus]

    def orders(self, row: Any, epoch: int) -> list[Order]:
        """Return the orders that close what no open order closes."""
        found = list[Order]()
        for symbol, position in sorted(self._positions(row).items()):
            quantity = self._reduction(row, symbol).quantity
            if quantity:
                found.append(flatten_order(row, symbol, quantity, position.mark, epoch))
        return found

    def is_over(self, row: Any) -> bool:
        """Return whether nothing is held or may fill; of one that was given up, whether its orders ended."""
        if row.given_up:
            return not any(order.flattens for orders in self._opened(row).values() for order in orders)
        return not self._positions(row) and not self._opened(row)

    def _reduction(self, row: Any, symbol: str) -> Reduction:
        position = self._positions(row).get(symbol)
        return reduction(position.quantity if position else ZERO, self._opened(row).get(symbol, ()))

    def _positions(self, row: Any) -> Mapping[str, Position]:
        return self.positions.get((row.strategy_id, row.account), {})

    def _opened(self, row: Any) -> Mapping[str, Sequence[OpenQuantity]]:
        return self.opened.get((row.strategy_id, row.execution_domain), {})


def _open_quantity(row: Any) -> OpenQuantity:
    """Return what may still be filled of an open order. (Any: the columns of `OpenOrderRow`.)"""
    left = left_to_fill(row.quantity, row.filled_quantity)
    return OpenQuantity(row.order_id, left, row.origin == FLATTEN)


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
