"""The order log in the database: orders with the changes of their states, and counts.

Rows are only ever added: orders by `OrderAcceptance`, those that were not sent by `SqlWithheldOrders`,
changes of orders by `SqlOpenOrders` and `cancel_open`, changes of the fence by `log_fence_change`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.fills import standing
from activities.fence.ledger_entries import HAS_FILLS
from activities.fence.log_line import ACCEPTED, FILL, HAS_REASON, IS_END, IS_UNDERWAY, IS_VERDICT, WITHHELD
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.readable import readable
from activities.storage.tables import OpenOrderRow, OrderCountRow, OrderLogRow
from activities.storage.transactions import RecordedChange, table_of
from qmtl_sdk.contracts.fills import Filled, OrderFills, filled_by
from qmtl_sdk.contracts.orders import (
    CancelRequest,
    CancelResult,
    Order,
    OrderChange,
    OrderRecord,
    WithheldOrder,
)

_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)
_count = table_of(OrderCountRow)


class SqlOrderLog:
    """What became of orders."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cancel(self, world_id: str, request: CancelRequest, actor: str) -> CancelResult:
        """Cancel open orders of a world: those not sent at once, the others at their venues.

        Idempotent: orders that have ended stay as they are. Raises QmtlError (E_WORLD_UNKNOWN).
        """
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            reason = f"{actor}: {request.reason}" if request.reason else f"cancelled by {actor}"
            ids = None if request.all else request.order_ids
            done = cancel_open(tx, fence, reason, True, Selection(ids))
            after = {"reason": request.reason, "orders": list(ids or ())[:20], **done.model_dump()}
            tx.record(RecordedChange("orders.cancelled", world_id, world_id, after=after))
            return done

    def open_orders(self, world_id: str) -> int:
        """Count the open orders of a world."""
        with self._database.read() as session:
            return int(
                session.connection()
                .execute(select(func.count()).where(_open.c.world_id == world_id))
                .scalar_one()
            )

    def orders(self, world_id: str, after: int = 0, limit: int = 100, reason: str = "") -> list[OrderRecord]:
        """List orders of a world after a number of the log, oldest first.

        A reader that goes on after the last number it got misses no order. `reason` selects those refused for
        it.
        """
        query = select(_log).where(_log.c.world_id == world_id, _log.c.seq > after)
        query = query.where(HAS_REASON, _log.c.reason == reason) if reason else query.where(IS_VERDICT)
        with self._database.read() as session:
            connection = session.connection()
            rows = connection.execute(query.order_by(_log.c.seq).limit(limit)).all()
            changes = defaultdict[str, list[Any]](list)
            for kinds in (IS_UNDERWAY, IS_END):
                of_these = select(_log).where(_log.c.ref.in_([row.ref for row in rows]), kinds)
                for change in connection.execute(of_these.order_by(_log.c.seq)):
                    changes[change.ref].append(change)
            filled = _filled(connection, world_id, changes)
            return readable(rows, lambda row: _record(row, [row, *changes[row.ref]], filled.get(row.ref)))

    def counts(self, world_id: str) -> dict[str, int]:
        """Count the accepted orders, the withheld ones, and the refused ones by reason."""
        query = select(_count).where(_count.c.world_id == world_id)
        with self._database.read() as session:
            return {
                ACCEPTED if row.kind == ACCEPTED else row.reason: row.orders
                for row in session.connection().execute(query)
            }


def _filled(
    connection: Connection, world_id: str, changes: Mapping[str, Sequence[Any]]
) -> dict[str, Filled | None]:
    """Add up the fills of orders, without those that were taken back. (Any: rows of several columns.)"""
    found = {
        ref: [OrderFills.model_validate_json(row.body) for row in rows if row.kind in HAS_FILLS and row.body]
        for ref, rows in changes.items()
    }
    stand = {
        id(fill)
        for fill in standing(connection, world_id, [item for rows in found.values() for item in rows])
    }
    return {
        ref: filled_by(fill for item in rows for fill in item.fills if id(fill) in stand)
        for ref, rows in found.items()
    }


def _record(row: Any, changes: Sequence[Any], filled: Filled | None) -> OrderRecord:
    """Convert rows of the order log. (Any: rows of several columns.)"""
    changes = [change for change in changes if change.kind != FILL]
    withheld = WithheldOrder.model_validate_json(row.body) if row.kind == WITHHELD else None
    return OrderRecord.model_validate(
        {
            "seq": row.seq,
            "at": row.at,
            "order": withheld.order if withheld else Order.model_validate_json(row.body),
            "accepted": row.kind == ACCEPTED,
            "reason": row.reason or None,
            "state": changes[-1].kind,
            "fill": filled,
            "withheld": withheld.reason if withheld else "",
            "changes": [OrderChange(at=item.at, state=item.kind, reason=item.reason) for item in changes],
        }
    )
