"""The order log in the database: fills of accepted orders, and queries.

Rows are only ever added. `OrderAcceptance` adds the orders, `SqlOrderLog` adds the fills.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlmodel import SQLModel, col

from activities.fence.rows import ACCEPTED, FILLED, REFUSED
from activities.storage.database import Database
from activities.storage.tables import OpenOrderRow
from activities.storage.transactions import utc_now
from qmtl_sdk.contracts.orders import Fill, Order, OrderRecord

_log = SQLModel.metadata.tables["order_log"]
_open = SQLModel.metadata.tables["open_order"]

# The conditions of the partial indexes, in their exact words (see rows.py).
_VERDICT = text("order_log.kind IN ('accepted', 'refused')")
_ENDED = text("order_log.kind IN ('filled', 'cancelled')")


@dataclass(frozen=True, slots=True)
class OpenOrder:
    """The row of an accepted order that has no fill yet."""

    order_id: str
    body: str
    accepted: str

    def order(self) -> Order:
        """Read the order. Raises ValueError where the row is not an order of this version."""
        return Order.model_validate_json(self.body)

    @property
    def accepted_at(self) -> datetime:
        return datetime.fromisoformat(self.accepted)


class SqlOrderLog:
    """What became of accepted orders."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record_fills(self, fills: Sequence[Fill]) -> None:
        """Store fills, and close their orders. Idempotent by order id."""
        if not fills:
            return
        with self._database.write("router", bookkeeping=True) as tx:
            connection, now = tx.session.connection(), utc_now()
            ids = [fill.order_id for fill in fills]
            accepted = {
                row.ref: row
                for row in connection.execute(
                    select(_log.c.ref, _log.c.world_id, _log.c.epoch, _log.c.strategy_id).where(
                        _log.c.ref.in_(ids), _VERDICT, _log.c.kind == ACCEPTED
                    )
                )
            }
            rows = [
                {
                    "at": now,
                    "world_id": was.world_id,
                    "kind": FILLED,
                    "ref": fill.order_id,
                    "epoch": was.epoch,
                    "strategy_id": was.strategy_id,
                    "reason": "",
                    "body": fill.model_dump_json(),
                }
                for fill in sorted(fills, key=lambda fill: fill.order_id)
                if (was := accepted.get(fill.order_id)) is not None
            ]
            if rows:
                connection.execute(self._database.insert(_log).on_conflict_do_nothing(), rows)
            connection.execute(delete(OpenOrderRow).where(col(OpenOrderRow.order_id).in_(ids)))

    def waiting(self, limit: int, without: Collection[str] = ()) -> list[OpenOrder]:
        """List open orders but those of these ids, oldest first."""
        query = (
            select(_open.c.order_id, _log.c.body, _open.c.accepted_at)
            .join_from(_open, _log, (_log.c.ref == _open.c.order_id) & _VERDICT & (_log.c.kind == ACCEPTED))
            .order_by(_open.c.accepted_at)
            .limit(limit)
        )
        if without:
            query = query.where(_open.c.order_id.not_in(without))
        with self._database.read() as session:
            return [OpenOrder(*row) for row in session.connection().execute(query)]

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

        `reason` selects those refused for it.
        """
        query = select(_log).where(_log.c.world_id == world_id, _log.c.seq > after, _VERDICT)
        if reason:
            query = query.where(_log.c.reason == reason)
        with self._database.read() as session:
            connection = session.connection()
            rows = connection.execute(query.order_by(_log.c.seq).limit(limit)).all()
            ended = connection.execute(select(_log).where(_log.c.ref.in_([row.ref for row in rows]), _ENDED))
            by_ref = {row.ref: row for row in ended}
            return [_record(row, by_ref.get(row.ref)) for row in rows]

    def counts(self, world_id: str) -> dict[str, int]:
        """Count the accepted orders, and the refused ones by reason."""
        query = (
            select(_log.c.kind, _log.c.reason, func.count())
            .where(_log.c.world_id == world_id, _VERDICT)
            .group_by(_log.c.kind, _log.c.reason)
        )
        with self._database.read() as session:
            found: defaultdict[str, int] = defaultdict(int)
            for kind, reason, count in session.connection().execute(query):
                found[reason if kind == REFUSED else ACCEPTED] += count
            return dict(found)


def _record(row: Any, ended: Any) -> OrderRecord:
    """Convert rows of the order log. (Any: rows of several columns.)"""
    state = "refused"
    if row.kind != REFUSED:
        state = ended.kind if ended else "open"
    fill = Fill.model_validate_json(ended.body) if ended is not None and ended.kind == FILLED else None
    return OrderRecord.model_validate(
        {
            "seq": row.seq,
            "at": row.at,
            "order": Order.model_validate_json(row.body),
            "accepted": row.kind == ACCEPTED,
            "reason": row.reason or None,
            "state": state,
            "fill": fill,
        }
    )
