"""Withheld orders: what the order gates of strategies held back, recorded in the order log with the reason.

A row of the kind `withheld` answers its order id like a verdict: the id can no longer be accepted. An id that
was accepted or refused before keeps that answer.
"""

from collections.abc import Sequence

from activities.fence.callers import OrderCaller
from activities.fence.log_line import WITHHELD, LogLine, NewLine
from activities.fence.state import locked_fence
from activities.fence.statements import statements_of
from activities.sessions.sql import not_the_holder
from activities.storage.database import Database
from activities.storage.tables import SessionRow
from activities.storage.transactions import utc_now
from qmtl_sdk.contracts.orders import WithheldOrder
from qmtl_sdk.contracts.refusals import Refusal


class SqlWithheldOrders:
    """Records withheld orders, one world in a transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._statements = statements_of(database)

    def record(self, orders: Sequence[WithheldOrder], caller: OrderCaller) -> int:
        """Record orders of one session, which may have ended. Returns how many were new.

        Raises QmtlError: E_SESSION_HOLDER where the session is not the caller's, or not of the orders' world
        and strategy; E_WORLD_UNKNOWN. Then none is recorded.
        """
        world_id, session_id = orders[0].order.world_id, orders[0].order.session_id
        with self._database.write("fence", bookkeeping=True) as tx:
            fence = locked_fence(tx, world_id)  # so that the rows are of the epoch that they carry
            session = tx.session.get(SessionRow, session_id)
            if session is None or not caller.holds(session_id, session.actor, session.secret_hash):
                raise not_the_holder(session_id)
            its = (session_id, session.world_id, session.strategy_id)
            now, lines = utc_now(), dict[str, LogLine]()
            for item in orders:
                order = item.order
                if (order.session_id, order.world_id, order.strategy_id) != its:
                    raise not_the_holder(order.session_id)
                lines[order.order_id] = LogLine(
                    now,
                    world_id,
                    WITHHELD,
                    order.order_id,
                    fence.epoch,
                    order.strategy_id,
                    Refusal.WITHHELD.value,
                    item.model_dump_json(),
                )
            connection = tx.session.connection()
            return len(self._statements.write(connection, list(map(NewLine, lines.values()))))
