"""The rows of flattens: one for each strategy and domain whose positions are being closed.

The row of a flatten that is over and has left something stays until the next flatten of its strategy, for
whoever asks what that is.

(Any, here: the columns of `FlatteningRow`.)
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, delete, select, update

from activities.fence.flatten_faults import OrderEnd, fault_values, faults_of, with_end
from activities.fence.flatten_holdings import Holdings
from activities.fence.log_line import LogLine
from activities.fence.open_order import IS_ACCEPTANCE
from activities.fence.rules import FLATTEN
from activities.storage.tables import FlatteningRow, OrderLogRow
from activities.storage.transactions import RecordedChange, Transaction, table_of, utc_now
from qmtl_sdk.contracts.orders import Order, OrderState

_log = table_of(OrderLogRow)
_flattening = table_of(FlatteningRow)

POSITION_CHANGED = "the position that it closes has changed"
"""Why a flatten takes an order of its own back."""

_FAILED = frozenset({OrderState.CANCELLED.value, OrderState.REJECTED.value, OrderState.EXPIRED.value})


def add_rows(tx: Transaction, world_id: str, flatten_id: str, places: Iterable[tuple[str, str, str]]) -> None:
    """Write a row for each strategy, domain and account. One that is there goes on at once."""
    now, wanted = utc_now(), sorted(places)
    strategies = {strategy_id for strategy_id, _, _ in wanted}
    over = (_flattening.c.world_id == world_id, _flattening.c.ended_at != "")
    tx.connection.execute(delete(_flattening).where(*over, _flattening.c.strategy_id.in_(strategies)))
    rows = [
        {
            "world_id": world_id,
            "strategy_id": strategy_id,
            "execution_domain": domain,
            "account": account,
            "flatten_id": flatten_id,
            "since": now,
            "faults": "",
            "next_at": "",
            "cancel_reason": "",
            "ended_at": "",
        }
        for strategy_id, domain, account in wanted
    ]
    tx.insert_new_values(_flattening, rows)
    found = flattening_rows(tx.connection, world_id, strategies)
    waiting = [row for row in found if row.faults or row.cancel_reason]
    set_rows(tx.connection, waiting, faults="", next_at="", cancel_reason="")


def flattening_rows(connection: Connection, world_id: str, strategies: Collection[str] | None) -> list[Any]:
    """Read the rows of strategies of a world, or of all of them, whose flattens are under way."""
    return _rows(connection, world_id, strategies, _flattening.c.ended_at == "")


def ended_rows(connection: Connection, world_id: str, strategies: Collection[str] | None) -> list[Any]:
    """Read the same of flattens that are over and have left something."""
    return _rows(connection, world_id, strategies, _flattening.c.ended_at != "")


def _rows(
    connection: Connection, world_id: str, strategies: Collection[str] | None, which: ColumnElement[bool]
) -> list[Any]:
    mine = [_flattening.c.world_id == world_id, which]
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


class Noted(NamedTuple):
    """Whether rows have changed, and the symbols that they have given up, by strategy and domain."""

    changed: bool
    given_up: Mapping[tuple[str, str], Sequence[str]]

    def of(self, row: Any) -> Sequence[str]:
        """Return the symbols that a row has given up."""
        return self.given_up.get((row.strategy_id, row.execution_domain), ())


def note_ends(connection: Connection, rows: Iterable[Any], lines: Sequence[LogLine]) -> Noted:
    """Note in the rows what venues have reported of their orders, as these lines say.

    A symbol waits whose order a venue has ended without filling it, unless the flatten itself took it back.
    """
    told = {line.ref: line for line in lines if line.kind in _FAILED or line.body}
    if not told:
        return Noted(False, {})
    query = select(_log.c.ref, _log.c.body).where(_log.c.ref.in_(sorted(told)), IS_ACCEPTANCE)
    ends = defaultdict[tuple[str, str], list[OrderEnd]](list)
    for ref, body in connection.execute(query.order_by(_log.c.ref)):
        order = Order.model_validate_json(body)
        if order.origin == FLATTEN:
            end = _end(order, [line for line in lines if line.ref == ref])
            ends[order.strategy_id, order.execution_domain.value].append(end)
    given_up = dict[tuple[str, str], list[str]]()
    for row in rows:
        place = (row.strategy_id, row.execution_domain)
        before = faults = faults_of(row)
        for end in ends.get(place, ()):
            faults = with_end(faults, end)
        if faults != before:
            set_rows(connection, [row], **fault_values(faults))
            given_up[place] = [
                symbol
                for symbol, fault in faults.items()
                if fault.given_up and not (symbol in before and before[symbol].given_up)
            ]
    return Noted(bool(given_up), given_up)


def _end(order: Order, lines: Sequence[LogLine]) -> OrderEnd:
    failed = next((line for line in lines if line.kind in _FAILED and line.reason != POSITION_CHANGED), None)
    said = ": ".join(filter(None, (failed.kind, failed.reason))) if failed else ""
    return OrderEnd(order.symbol, any(line.body for line in lines), said)


def set_rows(connection: Connection, rows: Iterable[Any], **values: object) -> None:
    """Change rows."""
    for row in rows:
        connection.execute(update(_flattening).where(*_is(row)).values(**values))


def record_given_up(tx: Transaction, given_up: Iterable[tuple[Any, str]], holdings: Holdings) -> None:
    """Record which symbols flattens have given up, each with what is left of it and why."""
    tx.record_all(
        RecordedChange(
            "flatten.given_up",
            row.world_id,
            row.strategy_id,
            after={"flatten_id": row.flatten_id, "account": row.account, **_left(symbol, *left)},
            correlation_id=row.flatten_id,
        )
        for row, symbol in given_up
        if (left := holdings.left(row).get(symbol)) is not None
    )


def end_rows(tx: Transaction, rows: Sequence[Any], holdings: Holdings) -> None:
    """End flattens. The row of one that leaves something stays, unless a person has cancelled it."""
    left = {_key(row): holdings.left(row) for row in rows}
    for row in rows:
        if left[_key(row)] and not row.cancel_reason:
            set_rows(tx.connection, [row], next_at="", ended_at=holdings.end_of(row))
        else:
            tx.connection.execute(delete(_flattening).where(*_is(row)))
    tx.record_all(
        RecordedChange(
            "flatten.ended",
            row.world_id,
            row.strategy_id,
            after={
                "flatten_id": row.flatten_id,
                "account": row.account,
                "cancel_reason": row.cancel_reason,
                "left": [_left(symbol, *found) for symbol, found in left[_key(row)].items()],
            },
            correlation_id=row.flatten_id,
        )
        for row in rows
    )


def _left(symbol: str, quantity: Decimal, reason: str) -> dict[str, str]:
    return {"symbol": symbol, "quantity": str(quantity), "reason": reason}


def _key(row: Any) -> tuple[str, ...]:
    return tuple(getattr(row, column.name) for column in _flattening.primary_key)


def _is(row: Any) -> list[Any]:
    """Select a row by its key. (Any: conditions.)"""
    return [column == getattr(row, column.name) for column in _flattening.primary_key]
