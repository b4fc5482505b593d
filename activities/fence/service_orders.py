"""Orders that the service decides, accepted without the rules of strategies' orders."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from activities.fence.log_line import ACCEPTED, LogLine, NewLine
from activities.fence.statements import statements_in
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction, utc_text
from activities.storage.write_marks import mark_write
from qmtl_sdk.contracts.orders import Order


def accept_orders(tx: Transaction, fence: FenceRow, orders: Sequence[Order]) -> set[str]:
    """Write orders into the log and the table of open orders, and count them. The caller holds the fence.

    Returns the ids that are new: the earlier row of an id stands.
    """
    if not orders:
        return set()
    at = datetime.now(UTC)
    # A microsecond apart, as those of strategies, so that the router sends them in this order.
    lines = [
        NewLine.of(_line(fence, utc_text(at + timedelta(microseconds=n)), order), order)
        for n, order in enumerate(orders)
    ]
    written = statements_in(tx.connection).write(tx.connection, lines)
    if written:
        mark_write(tx.connection)  # which sees only statements that go through SQLAlchemy
    return written


def _line(fence: FenceRow, time: str, order: Order) -> LogLine:
    body = order.model_dump_json()
    return LogLine(time, order.world_id, ACCEPTED, order.order_id, fence.epoch, order.strategy_id, "", body)
