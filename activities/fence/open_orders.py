"""Open orders: what the router reads, and how each changes its state, in a transaction that holds the fence.

1. `due` lists what the router looks at now: accepted orders, and sent ones that a venue has not ended.
2. `mark_sent` asks the fence again and writes `sent` before anything leaves, so that no order leaves unseen.
3. `record` writes what venues report. An order that has ended stays as it is, whatever is reported later.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import structlog
from sqlalchemy import ColumnElement, Connection, bindparam, func, select, union_all, update

from activities.fence.fills import write_lines
from activities.fence.flattening import continue_flattens
from activities.fence.log_line import ACCEPTED, LogLine
from activities.fence.open_order import ORDER, OpenOrder, read_open
from activities.fence.reports import record_reports
from activities.fence.rules import FLATTEN, Activation, FenceState, OrderContext, refusal_before_sending
from activities.fence.state import locked_fence
from activities.storage.database import Database
from activities.storage.lists import among
from activities.storage.tables import ActivationRow, FenceRow, OpenOrderRow, OrderLogRow, StrategyHaltRow
from activities.storage.transactions import table_of, utc_now, utc_text
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.orders import OrderReport, OrderState
from qmtl_sdk.contracts.refusals import REFUSALS

# Milliseconds that the router waits for a world's fence before it goes on with other worlds.
_LOCK_MS = 200

# Worlds of a turn at most: what comes meanwhile waits for no more than these.
_WORLDS = 50

# Pauses of a second or more end at multiples of this (s), so that orders that rest come due together.
_TOGETHER_S = 0.5

T = TypeVar("T")

_structlog = structlog.get_logger()
_log = table_of(OrderLogRow)
_open = table_of(OpenOrderRow)
_halt = table_of(StrategyHaltRow)
_activation = table_of(ActivationRow)

# Made once: the router reads it after every commit, and mostly finds nothing new.
_NEXT_DUE = union_all(
    *(
        select(func.min(_open.c.next_at)).where(_open.c.execution_domain == domain.value)
        for domain in (Domain.DRYRUN, Domain.LIVE)
    )
)


# A cancel that came since the order was read stays due at once.
_DELAY = (
    update(_open)
    .where(_open.c.order_id == bindparam("id"), _open.c.cancel_reason == bindparam("as_read"))
    .values(next_at=bindparam("until"))
)

# Orders that are to be sent or cancelled: they come before those that only rest.
_URGENT = (_open.c.state == ACCEPTED) | (_open.c.cancel_reason != "")


class SqlOpenOrders:
    """The states of accepted orders until they end."""

    def __init__(self, database: Database, send_within_s: float) -> None:
        """An order that was not sent within `send_within_s` of its acceptance expires: its price is old."""
        self._database = database
        self._send_within = timedelta(seconds=send_within_s)

    def due(self, domain: Domain, limit: int, without: Collection[str] = ()) -> dict[str, list[OpenOrder]]:
        """List orders of a domain that are due now by world, but for these worlds: at most about `limit`.

        Each world gets its share, so that one with many orders does not hide the others, and of many worlds
        those come that have waited longest. Of worlds and orders, three quarters of the places are first for
        what is to be sent or cancelled, and all others for what only rests: neither hides the other.
        """
        due = (_open.c.execution_domain == domain.value) & (_open.c.next_at <= utc_now())
        with self._database.read() as session:
            connection = session.connection()

            def waiting(which: ColumnElement[bool]) -> list[str]:
                oldest = select(_open.c.world_id).where(due, which).group_by(_open.c.world_id)
                rows = connection.execute(oldest.order_by(func.min(_open.c.next_at))).scalars()
                return [world for world in rows if world not in without]

            def orders(world: str, which: ColumnElement[bool]) -> list[OpenOrder]:
                mine = ORDER.where(due, which, _open.c.world_id == world).limit(share)
                return [OpenOrder._make(row) for row in connection.execute(mine)]

            worlds = _shared(waiting(_URGENT), waiting(~_URGENT), _WORLDS)
            share = max(limit // max(len(worlds), 1), 1)
            return {
                world: _shared(orders(world, _URGENT), orders(world, ~_URGENT), share) for world in worlds
            }

    def next_due(self) -> datetime | None:
        """Return when the next open order is due; None where there is none."""
        with self._database.read() as session:
            found = [next_at for next_at in session.connection().execute(_NEXT_DUE).scalars() if next_at]
        return datetime.fromisoformat(min(found)) if found else None

    def mark_sent(self, world_id: str, orders: Sequence[OpenOrder], look_again_s: float) -> list[OpenOrder]:
        """Mark orders as sent where the fence still allows it; the others are cancelled or expire.

        Returns those to be sent now. Orders that never reached a venue may be marked again. Raises
        LockHeldError where another transaction holds the fence.
        """
        with self._database.write("router", bookkeeping=True) as tx:
            fence = locked_fence(tx, world_id, _LOCK_MS)
            continue_flattens(tx, fence, {order.strategy_id for order in orders})  # ends what may not be sent
            connection = tx.session.connection()
            at = datetime.now(UTC)
            activations = _activations(connection, world_id, {order.strategy_id for order in orders})
            sent, lines = list[OpenOrder](), list[LogLine]()
            for order in read_open(connection, [order.order_id for order in orders]):
                end = self._end_before_sending(order, fence, activations.get(order.strategy_id), at)
                if end is not None:
                    lines.append(_line(order, fence, *end))
                    continue
                if order.state == OrderState.ACCEPTED.value:
                    lines.append(_line(order, fence, OrderState.SENT, ""))
                sent.append(order._replace(state=OrderState.SENT.value, sent_at=utc_text(at)))
            write_lines(tx, world_id, lines)
            ended = {line.strategy_id for line in lines if line.kind != OrderState.SENT.value}
            continue_flattens(tx, fence, ended)  # what an order might have filled is theirs to order now
            again = utc_text(at + timedelta(seconds=look_again_s))
            if sent:
                connection.execute(
                    update(_open)
                    .where(among(_open.c.order_id, [order.order_id for order in sent]))
                    .values(state=OrderState.SENT.value, sent_at=utc_text(at), next_at=again)
                )
            return sent

    def record(
        self, world_id: str, reports: Sequence[OrderReport], look_again: Mapping[OpenOrder, float]
    ) -> int:
        """Store what a venue reports. Returns how many states have changed.

        `look_again` are the seconds until the router looks at an order again. Raises LockHeldError.
        """
        with self._database.write("router", bookkeeping=True) as tx:
            fence = locked_fence(tx, world_id, _LOCK_MS)
            lines = record_reports(tx, fence, reports)
            continue_flattens(tx, fence, {line.strategy_id for line in lines}, lines)
            _delay(tx.connection, look_again)
            return len(lines)

    def delay(self, world_id: str, look_again: Mapping[OpenOrder, float]) -> None:
        """Look at orders again after so many seconds. Raises LockHeldError."""
        with self._database.write("router", bookkeeping=True) as tx:
            locked_fence(tx, world_id, _LOCK_MS)
            _delay(tx.session.connection(), look_again)

    def _end_before_sending(
        self, order: OpenOrder, fence: FenceRow, activation: Activation | None, now: datetime
    ) -> tuple[OrderState, str] | None:
        """Return how an order ends that is not sent; None where it is sent."""
        if order.cancel_reason:
            return OrderState.CANCELLED, order.cancel_reason
        found = order.order()
        is_reduction = found.origin == FLATTEN
        if order.epoch < fence.halt_epoch and not is_reduction:
            return OrderState.CANCELLED, "the world was halted after the order was accepted"
        context = OrderContext(found, fence_state(fence), activation, None, utc_text(now), routed=True)
        reason = refusal_before_sending(context)
        if reason is not None:
            return OrderState.CANCELLED, REFUSALS[reason]
        if now - order.accepted_at > self._send_within and not is_reduction:
            return OrderState.EXPIRED, f"it was not sent within {self._send_within.total_seconds():g} s"
        return None


def fence_state(row: FenceRow) -> FenceState:
    """Read what the rules check from a fence row."""
    return FenceState(**{name: getattr(row, name) for name in FenceState.__dataclass_fields__})


def _activations(connection: Connection, world_id: str, strategies: set[str]) -> dict[str, Activation]:
    these = (_activation.c.world_id == world_id) & _activation.c.strategy_id.in_(strategies)
    halts = select(_halt.c.strategy_id).where(_halt.c.world_id == world_id)
    halted = set(connection.execute(halts).scalars())
    return {
        row.strategy_id: Activation(bool(row.active), row.mode, row.strategy_id in halted)
        for row in connection.execute(select(_activation).where(these))
    }


def _line(order: OpenOrder, fence: FenceRow, state: OrderState, reason: str) -> LogLine:
    """Build the log's row of a change that fills nothing."""
    return LogLine(
        utc_now(), order.world_id, state.value, order.order_id, fence.epoch, order.strategy_id, reason, ""
    )


def _delay(connection: Connection, look_again: Mapping[OpenOrder, float]) -> None:
    now = datetime.now(UTC)
    if look_again:
        connection.execute(
            _DELAY,
            [
                {
                    "id": order.order_id,
                    "as_read": order.cancel_reason,
                    "until": utc_text(_until(now, seconds)),
                }
                for order, seconds in sorted(look_again.items())
            ],
        )


def _until(now: datetime, seconds: float) -> datetime:
    until = now.timestamp() + seconds
    if seconds >= 1:
        until = math.ceil(until / _TOGETHER_S) * _TOGETHER_S
    return datetime.fromtimestamp(until, UTC)


def _shared(first: list[T], second: list[T], limit: int) -> list[T]:
    """Return `limit` items: of `first`, but for a quarter of the places that is for `second`; none twice."""
    kept = first[: limit - min(len(second), limit // 4)]
    return list(dict.fromkeys([*kept, *second, *first]))[:limit]
