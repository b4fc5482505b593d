"""What strategies that are being flattened hold, with their open orders and the lots of their symbols.

(Any, here: the columns of `FlatteningRow`.)
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, select

from activities.fence.flatten_faults import faults_of
from activities.fence.flatten_orders import flatten_order
from activities.fence.open_order import left_to_fill
from activities.fence.reductions import OpenQuantity, Reduction, reduction
from activities.fence.rules import FLATTEN
from activities.fence.sizing import WorldSizing
from activities.fence.targets import WorldSizings
from activities.ledger.sql import held_positions
from activities.storage.tables import OpenOrderRow
from activities.storage.transactions import table_of, utc_now
from qmtl_sdk.brokerage.fills import in_lots
from qmtl_sdk.contracts.amounts import ZERO, plain
from qmtl_sdk.contracts.ledger import Position
from qmtl_sdk.contracts.orders import Order

_open = table_of(OpenOrderRow)

# Of all stores: it compares etags, which are hashes of specs.
_SIZINGS = WorldSizings()


@dataclass(frozen=True)
class Holdings:
    """Positions by strategy and account, and open orders by strategy and domain, each by symbol."""

    positions: Mapping[tuple[str, str], Mapping[str, Position]]
    opened: Mapping[tuple[str, str], Mapping[str, Sequence[OpenQuantity]]]
    sizing: WorldSizing

    @classmethod
    def read(cls, connection: Connection, world_id: str, strategies: Sequence[str]) -> "Holdings":
        """Read what strategies hold, and their open orders."""
        positions = defaultdict[tuple[str, str], dict[str, Position]](dict)
        for key, position in held_positions(connection, world_id, strategies).items():
            positions[key.strategy_id, key.account][key.symbol] = position
        opened = defaultdict[tuple[str, str], dict[str, list[OpenQuantity]]](dict)
        mine = (_open.c.world_id == world_id, _open.c.strategy_id.in_(strategies))
        for row in connection.execute(select(_open).where(*mine).order_by(_open.c.order_id)):
            symbols = opened[row.strategy_id, row.execution_domain]
            symbols.setdefault(row.symbol, []).append(_open_quantity(row))
        return cls(positions, opened, _SIZINGS.of(connection, [world_id])[world_id])

    def surplus(self, row: Any) -> list[str]:
        """Return the orders of a flatten that are too much."""
        return [order_id for symbol in self._opened(row) for order_id in self._reduction(row, symbol).surplus]

    def orders(self, row: Any, epoch: int, now: str) -> list[Order]:
        """Return the orders that close what no open order closes, but for symbols that wait for a time."""
        faults = faults_of(row)
        waiting = {symbol for symbol, fault in faults.items() if fault.next_at > now}
        return [
            flatten_order(row, symbol, quantity, self._positions(row)[symbol].mark, epoch)
            for symbol, quantity in self._closable(row).items()
            if symbol not in waiting
        ]

    def is_over(self, row: Any) -> bool:
        """Return whether nothing can be closed or may fill; of one cancelled, whether its orders ended."""
        if row.cancel_reason:
            return not any(order.flattens for orders in self._opened(row).values() for order in orders)
        return not self._closable(row) and not self._opened(row)

    def left(self, row: Any) -> dict[str, tuple[Decimal, str]]:
        """Return what is held and not closed, by symbol, and why: all where a person cancelled the flatten.

        What was traded since a flatten ended is no remainder of it.
        """
        found = dict[str, tuple[Decimal, str]]()
        for symbol, position in sorted(self._positions(row).items()):
            if row.ended_at and position.marked_at > row.ended_at:
                continue
            why = row.cancel_reason or self._why_left(row, symbol)
            if why:
                found[symbol] = position.quantity, why
        return found

    def end_of(self, row: Any) -> str:
        """Return when a flatten that is over ends: now, but after its fills, whose clock may be another."""
        return max([utc_now(), *(position.marked_at for position in self._positions(row).values())])

    def _why_left(self, row: Any, symbol: str) -> str:
        """Say why no order closes a position; empty where one does."""
        fault, lot = faults_of(row).get(symbol), self._lot(row, symbol)
        if fault is not None and fault.given_up:
            return fault.text
        below = not in_lots(self._positions(row)[symbol].quantity, lot)
        return f"it is less than a lot of {lot:f}" if below else ""

    def _closable(self, row: Any) -> dict[str, Decimal]:
        """Return what orders may still close by symbol (positive buys), in lots."""
        faults = faults_of(row)
        given_up = {symbol for symbol, fault in faults.items() if fault.given_up}
        found = {
            symbol: plain(in_lots(self._reduction(row, symbol).quantity, self._lot(row, symbol)))
            for symbol in sorted(self._positions(row).keys() - given_up)
        }
        return {symbol: quantity for symbol, quantity in found.items() if quantity}

    def _lot(self, row: Any, symbol: str) -> Decimal:
        return self.sizing.instrument(row.account, symbol).lot

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
