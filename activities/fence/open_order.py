"""An open order, as the table of open orders and its acceptance in the order log have it."""

from collections.abc import Collection
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, exists, select

from activities.fence.log_line import ACCEPTED, IS_VERDICT
from activities.storage.lists import among
from activities.storage.tables import OpenOrderRow, OrderLogRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.orders import Order

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)


def left_to_fill(quantity: str, filled_quantity: str) -> Decimal:
    """Return what may still be filled of an order (positive buys); 0 where more than it was filled."""
    ordered, filled = Decimal(quantity), Decimal(filled_quantity or 0)
    return plain(max(EXACT.subtract(ordered.copy_abs(), filled), ZERO).copy_sign(ordered))


def is_open(order_id: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a column names an open order."""
    return exists().where(_open.c.order_id == order_id)


class OpenOrder(NamedTuple):
    """An accepted order that has not ended. Times are ISO 8601 texts (UTC)."""

    order_id: str
    world_id: str
    strategy_id: str
    epoch: int
    accepted: str
    state: str
    sent_at: str
    acknowledged: bool
    filled_quantity: str
    cancel_reason: str
    body: str

    def order(self) -> Order:
        """Read the order. Raises ValueError where the row is not an order of this version."""
        return Order.model_validate_json(self.body)

    @property
    def accepted_at(self) -> datetime:
        """When it was accepted. Raises ValueError where the row is no time."""
        return datetime.fromisoformat(self.accepted)


_OPEN = select(
    _open.c.order_id,
    _open.c.world_id,
    _open.c.strategy_id,
    _open.c.epoch,
    _open.c.accepted_at,
    _open.c.state,
    _open.c.sent_at,
    _open.c.acknowledged,
    _open.c.filled_quantity,
    _open.c.cancel_reason,
)
IS_ACCEPTANCE = IS_VERDICT & (_log.c.kind == ACCEPTED)
ORDER = (
    _OPEN.add_columns(_log.c.body)
    .join_from(_open, _log, (_log.c.ref == _open.c.order_id) & IS_ACCEPTANCE)
    .order_by(_open.c.next_at, _open.c.accepted_at)
)


def read_open(connection: Connection, ids: Collection[str]) -> list[OpenOrder]:
    """Read open orders under the fence's lock: a cancel may have come first.

    Without a join: of many ids in a table that has just grown, PostgreSQL would read the whole log.
    """
    wanted = list(ids)
    of = select(_log.c.ref, _log.c.body).where(among(_log.c.ref, wanted), IS_ACCEPTANCE)
    bodies = {row.ref: row.body for row in connection.execute(of)}
    found = connection.execute(
        _OPEN.where(among(_open.c.order_id, wanted)).order_by(_open.c.next_at, _open.c.accepted_at)
    )
    return [OpenOrder._make((*row, bodies[row.order_id])) for row in found if row.order_id in bodies]
