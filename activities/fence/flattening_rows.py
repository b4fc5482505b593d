"""The rows of flattens that are under way: one for each strategy and domain whose positions are being closed.

(Any, here: the columns of `FlatteningRow`.)
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update

from activities.fence.log_line import LogLine
from activities.fence.open_order import IS_ACCEPTANCE
from activities.fence.rules import FLATTEN
from activities.storage.tables import FlatteningRow, OrderLogRow
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now, utc_text
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.orders import MAX_REASON, Order, OrderState

_log = table_of(OrderLogRow)
_flattening = table_of(FlatteningRow)

# Seconds before another order is made after a venue ended one that was not filled; they double each time.
_RETRY_S = 5.0
_RETRY_LIMIT_S = 60.0

_FAILED = frozenset({OrderState.CANCELLED.value, OrderState.REJECTED.value, OrderState.EXPIRED.value})


def add_rows(tx: Transaction, world_id: str, flatten_id: str, places: Iterable[tuple[str, str, str]]) -> None:
    """Write a row for each strategy, domain and account. One that is there goes on at once."""
    now, wanted = utc_now(), sorted(places)
    rows = [
        {
            "world_id": world_id,
            "strategy_id": strategy_id,
            "execution_domain": domain,
            "account": account,
            "flatten_id": flatten_id,
            "since": now,
            "failures": 0,
            "fault": "",
            "next_at": "",
            "given_up": "",
        }
        for strategy_id, domain, account in wanted
    ]
    tx.insert_new_values(_flattening, rows)
    strategies = {strategy_id for strategy_id, _, _ in wanted}
    found = flattening_rows(tx.connection, world_id, strategies)
    waiting = [row for row in found if row.next_at or row.given_up]
    set_rows(tx.connection, waiting, next_at="", given_up="")


def flattening_rows(connection: Connection, world_id: str, strategies: Collection[str] | None) -> list[Any]:
    """Read the rows of strategies of a world, or of all of them."""
    mine = [_flattening.c.world_id == world_id]
    if strategies is not None:
        if not strategies:
            return []
        mine.append(_flattening.c.strategy_id.in_(sorted(strategies)))
    by = (_flattening.c.strategy_id, _flattening.c.execution_domain)
    return list(connection.execute(select(_flattening).where(*mine).order_by(*by)))


def worlds_due(connection: Connection) -> list[str]:
    """List the worlds with a row whose time has come."""
    due = (_flattening.c.next_at != "", _flattening.c.next_at <= utc_now())
    query = select(_flattening.c.world_id).where(*due).distinct().order_by(_flattening.c.world_id)
    return list(connection.execute(query).scalars())


def note_failures(connection: Connection, rows: Iterable[Any], lines: Sequence[LogLine]) -> bool:
    """Let the rows wait of which a venue has ended an order without filling it, as these lines say.

    Returns whether there are such.
    """
    ended = {line.ref: line for line in lines if line.kind in _FAILED}
    if not ended:
        return False
    query = select(_log.c.ref, _log.c.body).where(_log.c.ref.in_(sorted(ended)), IS_ACCEPTANCE)
    failed = dict[tuple[str, str], str]()
    for ref, body in connection.execute(query):
        order = Order.model_validate_json(body)
        if order.origin == FLATTEN:
            said = f": {ended[ref].reason}" if ended[ref].reason else ""
            failed[order.strategy_id, order.execution_domain.value] = f"{ended[ref].kind}{said}"
    for row in rows:
        fault = failed.get((row.strategy_id, row.execution_domain))
        if fault is not None:
            failures = row.failures + 1
            pause = timedelta(seconds=retry_pause_s(failures, _RETRY_S, _RETRY_LIMIT_S))
            next_at = utc_text(datetime.now(UTC) + pause)
            set_rows(connection, [row], failures=failures, fault=fault[:MAX_REASON], next_at=next_at)
    return bool(failed)


def set_rows(connection: Connection, rows: Iterable[Any], **values: object) -> None:
    """Change rows."""
    for row in rows:
        connection.execute(update(_flattening).where(*_is(row)).values(**values))


def end_rows(tx: Transaction, rows: Sequence[Any]) -> None:
    """Remove rows: their flattens have ended."""
    for row in rows:
        tx.connection.execute(delete(_flattening).where(*_is(row)))
    tx.record_all(
        RecordedChange(
            "flatten.ended",
            row.world_id,
            row.strategy_id,
            after={"flatten_id": row.flatten_id, "account": row.account, "given_up": row.given_up},
            correlation_id=row.flatten_id,
        )
        for row in rows
    )


def _is(row: Any) -> list[Any]:
    """Select a row by its key. (Any: conditions.)"""
    return [column == getattr(row, column.name) for column in _flattening.primary_key]
