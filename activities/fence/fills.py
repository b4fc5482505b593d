"""Fills: written into the order log and booked in the ledger, in one transaction under the world's fence.

A fill is booked once, whatever reports it again: its id names its entry in the ledger. What a venue reports
comes by the router (`reports.py`), what a person or a bridge reports by `SqlFills`.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, delete, select, update

from activities.fence.flattening import continue_flattens
from activities.fence.ledger_entries import HAS_FILLS, entries_of, fill_entry, fill_ref, reversal_ref
from activities.fence.log_line import FILL, IS_END, IS_UNDERWAY, LogLine
from activities.fence.open_order import IS_ACCEPTANCE
from activities.fence.state import locked_fence
from activities.ledger.sql import book_entries, booked
from activities.storage.database import Database
from activities.storage.lists import among
from activities.storage.tables import FenceRow, OpenOrderRow, OrderLogRow
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill, FillBatch, OrderFills
from qmtl_sdk.contracts.ledger import Entry
from qmtl_sdk.contracts.orders import Order, OrderState

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)


class NewFills(NamedTuple):
    """Fills by order that are not booked yet, and those whose id was used with another content."""

    fresh: dict[str, tuple[Fill, ...]]
    reused: list[Fill]


class SqlFills:
    """Records fills that a person or a bridge to a venue reports."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(self, batch: FillBatch, actor: str) -> int:
        """Record fills of one world, all or none. Returns how many were new.

        An order whose fills make up its quantity ends as filled. Raises QmtlError: E_WORLD_UNKNOWN;
        E_ORDER_UNKNOWN for an order that the fence did not accept; E_ORDER_NOT_SENT for one that never left;
        E_FILL_EXCEEDS where the fills are more than was ordered; E_FILL_REUSED where a fill of that id has
        another content.
        """
        reported = defaultdict[str, list[Fill]](list)
        for item in batch.fills:
            reported[item.order_id].append(item.fill)
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, batch.world_id)
            orders = accepted_orders(tx.connection, batch.world_id, reported)
            _require_known(batch.world_id, orders, reported)
            fresh, reused = new_fills(tx.connection, batch.world_id, orders.values(), reported)
            if reused:
                raise _reused(reused[0])
            if not fresh:
                return 0
            ended = _ended(tx.connection, fresh)
            lines = [
                self._line(tx.connection, fence, orders[order_id], fills, ended)
                for order_id, fills in fresh.items()
            ]
            write_lines(tx, batch.world_id, lines)
            for line in lines:
                if line.kind == OrderState.PARTIALLY_FILLED.value:
                    note_filled(tx.connection, orders[line.ref])
            continue_flattens(tx, fence, {line.strategy_id for line in lines})
            count = sum(map(len, fresh.values()))
            after = {"fills": count, "orders": sorted(fresh)[:20]}
            tx.record(RecordedChange("fills.reported", batch.world_id, batch.world_id, after=after))
            return count

    @staticmethod
    def _line(
        connection: Connection,
        fence: FenceRow,
        order: Order,
        fills: Sequence[Fill],
        ended: Mapping[str, bool],
    ) -> LogLine:
        """Build the row of an order's new fills. Raises QmtlError."""
        if order.order_id not in ended:
            raise QmtlError(
                "E_ORDER_NOT_SENT",
                f"order {order.order_id} has not been sent to a venue, so nothing can have been filled",
                "qmtl world orders W shows its state",
            )
        before = filled_before(connection, order)
        now = exact_sum((before, *(fill.quantity for fill in fills)))
        if now > order.quantity:
            raise QmtlError(
                "E_FILL_EXCEEDS",
                f"the fills of order {order.order_id} are {now} in all, and {order.quantity} were ordered",
                "check the quantity; a wrong fill is taken back by a booking of the kind reversal",
            )
        kind = FILL
        if not ended[order.order_id]:
            kind = (OrderState.FILLED if now == order.quantity else OrderState.PARTIALLY_FILLED).value
        return fill_line(fence, order, kind, fills)


def new_fills(
    connection: Connection,
    world_id: str,
    orders: Iterable[Order],
    reported: Mapping[str, Sequence[Fill]],
) -> NewFills:
    """Find the fills of each order that are not booked yet, in the order in which they were reported."""
    given = list(orders)
    refs = defaultdict[str, set[str]](set)
    for order in given:
        for fill in reported[order.order_id]:
            refs[fill.account].add(fill_ref(order.symbol, fill.fill_id))
    known = {
        (account, ref): entry
        for account, names in refs.items()
        for ref, entry in booked(connection, world_id, account, sorted(names)).items()
    }
    fresh, reused = dict[str, tuple[Fill, ...]](), list[Fill]()
    for order in given:
        mine = list[Fill]()
        for fill in reported[order.order_id]:
            entry = fill_entry(order.order_id, order.strategy_id, order.symbol, order.side, fill)
            key = (fill.account, entry.ref)
            if key not in known:
                known[key] = entry
                mine.append(fill)
            elif _content(known[key]) != _content(entry):
                reused.append(fill)
        if mine:
            fresh[order.order_id] = tuple(mine)
    return NewFills(fresh, reused)


def fill_line(fence: FenceRow, order: Order, kind: str, fills: Sequence[Fill], reason: str = "") -> LogLine:
    """Build the row of the order log for new fills of an order."""
    body = ""
    if fills:
        found = OrderFills(symbol=order.symbol, side=order.side, fills=tuple(fills))
        body = found.model_dump_json(exclude_defaults=True)
    return LogLine(
        utc_now(), order.world_id, kind, order.order_id, fence.epoch, order.strategy_id, reason, body
    )


def write_lines(tx: Transaction, world_id: str, lines: Sequence[LogLine]) -> None:
    """Write rows into the log, book what they hold, and remove the orders that have ended."""
    if not lines:
        return
    tx.insert_all(_log, [line._asdict() for line in lines])
    book_entries(tx, world_id, [dated for line in lines for dated in entries_of(line)])
    ended = [line.ref for line in lines if line.kind in _ENDS]
    if ended:
        tx.connection.execute(delete(_open).where(among(_open.c.order_id, ended)))


def filled_before(connection: Connection, order: Order) -> Decimal:
    """Return what was filled of an order so far, less what was taken back."""
    found = _fill_lines(connection, order.order_id)
    return exact_sum(fill.quantity for fill in standing(connection, order.world_id, found))


def standing(connection: Connection, world_id: str, found: Sequence[OrderFills]) -> list[Fill]:
    """Return the fills of orders that were not taken back."""
    refs = defaultdict[str, list[str]](list)
    for order in found:
        for fill in order.fills:
            refs[fill.account].append(reversal_ref(order.symbol, fill.fill_id))
    back = {
        (account, ref)
        for account, names in refs.items()
        for ref in booked(connection, world_id, account, names)
    }
    return [
        fill
        for order in found
        for fill in order.fills
        if (fill.account, reversal_ref(order.symbol, fill.fill_id)) not in back
    ]


def note_filled(connection: Connection, order: Order) -> None:
    """Write into an open order what was filled of it, after fills were added or taken back."""
    set_filled(connection, order.order_id, filled_before(connection, order))


def set_filled(connection: Connection, order_id: str, filled: Decimal) -> None:
    """Write into an open order, which its venue has acknowledged, what was filled of it."""
    connection.execute(
        update(_open)
        .where(_open.c.order_id == order_id)
        .values(state=open_state(filled).value, acknowledged=True, filled_quantity=str(filled or ""))
    )


def open_state(filled: Decimal) -> OrderState:
    """Return the state of an order that is open at its venue."""
    return OrderState.PARTIALLY_FILLED if filled else OrderState.SENT


_ENDS = frozenset(HAS_FILLS - {FILL, OrderState.PARTIALLY_FILLED.value})


def _reused(fill: Fill) -> QmtlError:
    return QmtlError(
        "E_FILL_REUSED",
        f"fill {fill.fill_id} of {fill.account} was recorded before with another content",
        "a fill's id is used once; to correct it, book a reversal and report it under a new id",
    )


def _content(entry: Entry) -> tuple[object, ...]:
    """Return what two reports of one fill agree in; the time may be that of the report."""
    return (entry.order_id, entry.symbol, entry.quantity, entry.price, entry.fee)


def accepted_orders(connection: Connection, world_id: str, ids: Iterable[str]) -> dict[str, Order]:
    """Read accepted orders of a world, ended ones too. Those that are archived are not found."""
    wanted = list(ids)
    if not wanted:  # SQLite would read the world's whole log
        return {}
    query = select(_log.c.ref, _log.c.body).where(
        _log.c.ref.in_(wanted), IS_ACCEPTANCE, _log.c.world_id == world_id
    )
    found = {row.ref: Order.model_validate_json(row.body) for row in connection.execute(query)}
    return {order_id: found[order_id] for order_id in wanted if order_id in found}


def _require_known(world_id: str, found: Mapping[str, Order], wanted: Iterable[str]) -> None:
    """Check that all orders were found. Raises QmtlError (E_ORDER_UNKNOWN)."""
    for order_id in wanted:
        if order_id not in found:
            raise QmtlError(
                "E_ORDER_UNKNOWN",
                f"world {world_id} has accepted no order {order_id}, or its rows are archived",
                "qmtl world orders W lists those that are not; for an archived one, book an adjustment",
            )


def _ended(connection: Connection, ids: Iterable[str]) -> dict[str, bool]:
    """Return whether orders have ended; those that were never sent are left out."""
    wanted = list(ids)
    still_open = select(_open.c.order_id).where(among(_open.c.order_id, wanted))
    opened = set(connection.execute(still_open).scalars())
    sent = select(_log.c.ref).where(among(_log.c.ref, wanted), IS_UNDERWAY)
    left = set(connection.execute(sent).scalars())
    return {ref: ref not in opened for ref in wanted if ref in left}


def _fill_lines(connection: Connection, order_id: str) -> list[OrderFills]:
    """Read the fills of an order from its rows in the log."""
    return [
        OrderFills.model_validate_json(row.body)
        for which in (IS_UNDERWAY, IS_END)
        for row in connection.execute(select(_log.c.body).where(_log.c.ref == order_id, which))
        if row.body
    ]
