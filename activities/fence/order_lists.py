"""Reads lists of orders from the order log, each by an index, however long the log is.

All orders of a world are read along `order_log_world`. Those that were never accepted are read for each
reason along `order_log_reason`, and those of one strategy along `order_log_strategy`, whose rows have a
reason too: an empty one where the order was accepted. Of the numbers that the reasons give, the first or
newest ones are the list.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, select, union_all

from activities.fence.fills import standing
from activities.fence.ledger_entries import HAS_FILLS
from activities.fence.log_line import ACCEPTED, FILL, HAS_REASON, IS_END, IS_UNDERWAY, IS_VERDICT, WITHHELD
from activities.storage.readable import readable
from activities.storage.tables import OrderLogRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.fills import Filled, OrderFills, filled_by
from qmtl_sdk.contracts.order_list import ChangesOfWorld, OrderChanges, OrderFilter
from qmtl_sdk.contracts.orders import Order, OrderChange, OrderRecord, WithheldOrder
from qmtl_sdk.contracts.refusals import Refusal

_log = table_of(OrderLogRow)

# Rows of the log that one request for changes reads.
_CHANGES = 1000


def list_orders(connection: Connection, world_id: str, wanted: OrderFilter) -> list[OrderRecord]:
    """List orders of a world, oldest first."""
    rows = _verdicts(connection, world_id, wanted)
    return _records(connection, world_id, rows[::-1] if wanted.newest else rows)


def order_records(connection: Connection, world_id: str, ids: Sequence[str]) -> list[OrderRecord]:
    """Return the orders of a world with these ids. Those whose rows are archived are left out."""
    verdicts = select(_log).where(_log.c.ref.in_(ids), IS_VERDICT, _log.c.world_id == world_id)
    return _records(connection, world_id, connection.execute(verdicts).all())


def list_changes(connection: Connection, wanted: ChangesOfWorld) -> OrderChanges:
    """List orders that are new or have changed after a number of the log, by the number of their verdict."""
    mine = _log.c.world_id == wanted.world_id
    if wanted.after is None:
        newest = connection.execute(select(func.max(_log.c.seq)).where(mine)).scalar_one()
        return OrderChanges(after=newest or 0)
    query = select(_log.c.seq, _log.c.ref).where(mine, _log.c.seq > wanted.after)
    changes = connection.execute(query.order_by(_log.c.seq).limit(_CHANGES)).all()
    if not changes:
        return OrderChanges(after=wanted.after)
    # A row of the fence or of a booking has a name of another kind, under which there is no order.
    verdicts = select(_log).where(_log.c.ref.in_(sorted({row.ref for row in changes})), IS_VERDICT)
    rows = connection.execute(verdicts.order_by(_log.c.seq)).all()
    records = _records(connection, wanted.world_id, [row for row in rows if row.world_id == wanted.world_id])
    return OrderChanges(
        orders=tuple(filter(wanted.takes, records)), after=changes[-1].seq, more=len(changes) == _CHANGES
    )


def _verdicts(connection: Connection, world_id: str, wanted: OrderFilter) -> Sequence[Any]:
    """Read the rows with the verdicts of orders, newest first where wanted so. (Any: their columns.)"""
    mine: list[Any] = [_log.c.world_id == world_id, _log.c.seq > wanted.after]
    order = _log.c.seq.desc() if wanted.newest else _log.c.seq
    reasons = _reasons(wanted)
    if not reasons:
        mine.append(IS_VERDICT)
    else:
        mine.append(IS_VERDICT if wanted.strategy_id else HAS_REASON)
        if wanted.strategy_id:
            mine.append(_log.c.strategy_id == wanted.strategy_id)
        of_reasons = [
            select(_log.c.seq).where(*mine, _log.c.reason == reason).order_by(order).limit(wanted.limit)
            for reason in reasons
        ]
        numbers = union_all(*(select(found.subquery().c.seq) for found in of_reasons)).subquery().c.seq
        first = select(numbers).order_by(numbers.desc() if wanted.newest else numbers).limit(wanted.limit)
        mine = [_log.c.seq.in_(connection.execute(first).scalars().all())]
    return connection.execute(select(_log).where(*mine).order_by(order).limit(wanted.limit)).all()


def _reasons(wanted: OrderFilter) -> list[str]:
    """Return what the rows have as their reason, empty for an accepted order; none where that is open."""
    if wanted.reasons is not None:
        return sorted(reason.value for reason in wanted.reasons)
    return ["", *(reason.value for reason in Refusal)] if wanted.strategy_id else []


def _records(connection: Connection, world_id: str, rows: Sequence[Any]) -> list[OrderRecord]:
    """Return the orders of rows with verdicts, as they are now. (Any: rows of several columns.)"""
    changes = defaultdict[str, list[Any]](list)
    for kinds in (IS_UNDERWAY, IS_END):
        of_these = select(_log).where(_log.c.ref.in_([row.ref for row in rows]), kinds)
        for change in connection.execute(of_these.order_by(_log.c.seq)):
            changes[change.ref].append(change)
    filled = _filled(connection, world_id, changes)
    return readable(rows, lambda row: _record(row, [row, *changes[row.ref]], filled.get(row.ref)))


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
