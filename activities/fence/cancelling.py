"""Cancel open orders: at once where they were not sent, otherwise by asking their venues."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, insert, literal, select, update

from activities.fence.log_line import LogLine
from activities.fence.rules import FLATTEN
from activities.storage.tables import FenceRow, OpenOrderRow, OrderLogRow
from activities.storage.transactions import Transaction, table_of, utc_now
from qmtl_sdk.contracts.orders import MAX_REASON, CancelResult, OrderState

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)


@dataclass(frozen=True)
class Selection:
    """Which open orders of a world: all, those with these ids, or those of these strategies.

    `flattens`: orders of flattens too, which only a person cancels, or a flatten for which they are too much.
    """

    order_ids: Sequence[str] | None = None
    strategies: Sequence[str] | None = None
    flattens: bool = False

    def of(self, world_id: str) -> ColumnElement[bool]:
        """Select the orders of a world in the table of open orders."""
        these: ColumnElement[bool] = _open.c.world_id == world_id
        if self.order_ids is not None:
            these &= _open.c.order_id.in_(self.order_ids)
        if self.strategies is not None:
            these &= _open.c.strategy_id.in_(self.strategies)
        return these if self.flattens else these & (_open.c.origin != FLATTEN)


def cancel_open(
    tx: Transaction, fence: FenceRow, reason: str, sent_too: bool, which: Selection
) -> CancelResult:
    """Cancel open orders of a world. The caller holds the fence.

    Orders that were not sent end here. With `sent_too` the router asks the venues of the others; only a
    venue's answer ends one that was sent. Statements for all orders at once: there may be thousands.
    """
    reason = reason[:MAX_REASON]
    connection = tx.session.connection()
    these = which.of(fence.world_id)
    unsent = these & (_open.c.state == OrderState.ACCEPTED.value)
    connection.execute(insert(_log).from_select(LogLine._fields, _cancelled(fence, unsent, reason)))
    ended = connection.execute(delete(_open).where(unsent)).rowcount
    if not sent_too:
        return CancelResult(cancelled=ended, requested=0)
    now = utc_now()
    asked = connection.execute(
        update(_open).where(these & (_open.c.cancel_reason == "")).values(cancel_reason=reason, next_at=now)
    ).rowcount
    return CancelResult(cancelled=ended, requested=asked)


def _cancelled(fence: FenceRow, which: ColumnElement[bool], reason: str) -> Select[Any]:
    """Select the log's rows for orders that are cancelled before they were sent. (Any: several columns.)"""
    return (
        select(
            literal(utc_now()),
            _open.c.world_id,
            literal(OrderState.CANCELLED.value),
            _open.c.order_id,
            literal(fence.epoch),
            _open.c.strategy_id,
            literal(reason),
            literal(""),
        )
        .where(which)
        .order_by(_open.c.accepted_at)
    )
