"""What venues report of orders: recorded in the order log, and booked, in one transaction under the fence.

A report may come twice, in parts, out of order, and after its order has ended: every fill is booked once, and
an order that has ended stays as it is. A venue that fills more than was ordered, or gives the id of a fill to
another one, has its world halted: nobody knows what else it does.
"""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal

import structlog

from activities.fence.fills import (
    accepted_orders,
    fill_line,
    filled_before,
    new_fills,
    open_state,
    set_filled,
    write_lines,
)
from activities.fence.halts import halt
from activities.fence.log_line import FILL, LogLine
from activities.fence.open_order import OpenOrder, read_open
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import ENDED, Order, OrderReport, OrderState

_log = structlog.get_logger()


def record_reports(tx: Transaction, fence: FenceRow, reports: Sequence[OrderReport]) -> list[LogLine]:
    """Record reports of a world's orders. The caller holds the fence. Returns the rows that were written."""
    by_id = _merged(reports)
    opened = {order.order_id: order for order in read_open(tx.connection, by_id)}
    orders = {order_id: order.order() for order_id, order in opened.items()}
    ended = [order_id for order_id, report in by_id.items() if report.fills and order_id not in opened]
    orders |= accepted_orders(tx.connection, fence.world_id, ended)
    fills = {order_id: report.fills for order_id, report in by_id.items()}
    fresh, reused = new_fills(tx.connection, fence.world_id, orders.values(), fills)
    lines, faults = list[LogLine](), [_reused(fill) for fill in reused]
    for order_id, order in orders.items():
        new = fresh.get(order_id, ())
        if order_id not in opened and not new:
            continue
        row = opened.get(order_id)
        before = Decimal(row.filled_quantity or 0) if row else filled_before(tx.connection, order)
        filled = exact_sum((before, *(fill.quantity for fill in new)))
        if row:
            lines += _open_line(tx, fence, order, (row, by_id[order_id], new, filled))
        else:
            lines.append(fill_line(fence, order, FILL, new))
        if filled > order.quantity and new:
            faults.append(f"a venue filled {filled} of order {order_id}, which is of {order.quantity}")
    write_lines(tx, fence.world_id, lines)
    if faults and not fence.halted:
        halt(tx, fence, faults[0])
    return lines


def _open_line(
    tx: Transaction,
    fence: FenceRow,
    order: Order,
    found: tuple[OpenOrder, OrderReport, Sequence[Fill], Decimal],
) -> list[LogLine]:
    """Note what is known of an open order, and build its row if something has changed."""
    row, report, new, filled = found
    state = OrderState(report.state)
    if state is OrderState.FILLED and filled < order.quantity:
        # Its fills are still to come. Ended now, it would not be asked for them any more.
        _log.error("an order is filled without its fills", order=order.order_id, filled=str(filled))
        state = OrderState.SENT
    if state not in ENDED:
        state = open_state(filled)
        if new or not row.acknowledged:
            set_filled(tx.connection, order.order_id, filled)
        if not new:
            return []
    reason = row.cancel_reason if state is OrderState.CANCELLED and row.cancel_reason else report.reason
    return [fill_line(fence, order, state.value, new, reason)]


def _merged(reports: Iterable[OrderReport]) -> Mapping[str, OrderReport]:
    """Merge the reports of each order: all fills, and the last state."""
    found = dict[str, OrderReport]()
    for report in reports:
        earlier = found.get(report.order_id)
        if earlier is not None:
            report = report.model_copy(update={"fills": (*earlier.fills, *report.fills)})
        found[report.order_id] = report
    return found


def _reused(fill: Fill) -> str:
    return f"the fill {fill.fill_id} of {fill.account} was reported before with another content"
