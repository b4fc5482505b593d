"""The order log in the database: orders with the changes of their states, and counts.

Rows are only ever added: orders by `OrderAcceptance`, those that were not sent by `SqlWithheldOrders`,
changes of orders by `SqlOpenOrders` and `cancel_open`, changes of the fence by `log_fence_change`.
"""

from sqlalchemy import func, select

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.flattening import cancel_flattens, continue_flattens
from activities.fence.log_line import ACCEPTED
from activities.fence.order_lists import list_changes, list_orders
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.tables import OpenOrderRow, OrderCountRow
from activities.storage.transactions import RecordedChange, table_of
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderChanges, OrderFilter
from qmtl_sdk.contracts.orders import CancelRequest, CancelResult, OrderRecord

_open = table_of(OpenOrderRow)
_count = table_of(OrderCountRow)

_FIRST_PAGE = OrderFilter()


class SqlOrderLog:
    """What became of orders."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def cancel(self, world_id: str, request: CancelRequest, actor: str) -> CancelResult:
        """Cancel open orders of a world: those not sent at once, the others at their venues.

        Whoever cancels an order of a flatten cancels that flatten: all its orders are cancelled. Idempotent:
        orders that have ended stay as they are. Raises QmtlError (E_WORLD_UNKNOWN).
        """
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, world_id)
            reason = f"{actor}: {request.reason}" if request.reason else f"cancelled by {actor}"
            ids = None if request.all else request.order_ids
            closing = cancel_flattens(tx, fence, ids, reason)
            which = Selection(None if ids is None else [*ids, *closing], flattens=True)
            done = cancel_open(tx, fence, reason, True, which)
            continue_flattens(tx, fence)  # those that have no open order now are over
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

    def orders(self, world_id: str, wanted: OrderFilter = _FIRST_PAGE) -> list[OrderRecord]:
        """List orders of a world, oldest first.

        A reader that goes on after the last number it got misses no order.
        """
        with self._database.read() as session:
            return list_orders(session.connection(), world_id, wanted)

    def changes(self, wanted: ChangesOfWorld) -> OrderChanges:
        """List the orders of a world that are new or have changed after a number of the log."""
        with self._database.read() as session:
            return list_changes(session.connection(), wanted)

    def counts(self, world_id: str) -> dict[str, int]:
        """Count the accepted orders, the withheld ones, and the refused ones by reason."""
        query = select(_count).where(_count.c.world_id == world_id)
        with self._database.read() as session:
            return {
                ACCEPTED if row.kind == ACCEPTED else row.reason: row.orders
                for row in session.connection().execute(query)
            }
