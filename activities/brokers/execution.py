"""Execution of a domain's open orders, one world at a time: look up, send, cancel, and record.

An order is written as sent before it is sent, so every order that may be at the venue is known. One without
an answer is looked up. That the venue does not know it is no answer until `time_in_flight_s` has passed since
the last attempt ended; then it is sent again under the same id, or cancelled.

Only the orders of one call are marked at a time, right before the call: a halt stops all others.
"""

import time
from collections.abc import Sequence
from datetime import UTC, datetime

import structlog

from activities.brokers.broker import CALL_LIMIT_S
from activities.brokers.calls import BrokerCalls, accepted_orders
from activities.brokers.recorded import RecordedFills
from activities.fence.open_order import OpenOrder
from activities.fence.open_orders import SqlOpenOrders
from qmtl_sdk.contracts.orders import ENDED, OrderReport, OrderState

# Seconds after the marking within which a call begins. A process that was stopped meanwhile looks its orders
# up instead: another router may have taken over and concluded that they never arrived.
_SENT_WITHIN_S = 2.0

# Seconds between two look-ups of an order: a quarter of the time since it was sent, between these.
_LOOK_AGAIN_S = (0.05, 1.0)

# Seconds at most between two look-ups of an order of which nothing can become: its world may change.
_QUIET_LIMIT_S = 60.0

# Seconds after which an order that cannot be read, or for which the broker fails, is looked at again.
_FAILED_S = 30.0

# Attempts that are remembered at most; older ones then count from when they are seen again.
_ATTEMPTS = 100_000

_log = structlog.get_logger()


class ExecutionHandler:
    """Sends a domain's orders to its broker, and follows them to their end."""

    def __init__(self, orders: SqlOpenOrders, calls: BrokerCalls) -> None:
        self._orders = orders
        self._calls = calls
        # By order id: which attempt it was (`sent_at`), and when it had ended, on the monotonic clock.
        self._attempts: dict[str, tuple[str, float]] = {}
        self._recorded = RecordedFills()
        # When a venue that had acknowledged an order first did not know it any more.
        self._missing: dict[str, float] = {}

    def handle(self, world_id: str, orders: Sequence[OpenOrder]) -> int:
        """Handle orders of one world. Returns how many states have changed.

        Raises BrokerUnavailableError, LockHeldError.
        """
        good = self._readable(world_id, orders)
        sent = [order for order in good if order.state != OrderState.ACCEPTED.value]
        changes, unknown = self._look_up(world_id, sent) if sent else (0, [])
        fresh = [order for order in good if order.state == OrderState.ACCEPTED.value]
        if fresh or unknown:
            changes += self._send(world_id, [*unknown, *fresh])
        return changes

    def _readable(self, world_id: str, orders: Sequence[OpenOrder]) -> list[OpenOrder]:
        """Return the orders that can be read; the others are looked at again later."""
        good, bad = list[OpenOrder](), dict[OpenOrder, float]()
        for order in orders:
            try:
                accepted_orders([order])
            except ValueError as error:
                bad[order] = _FAILED_S
                _log.error("an order cannot be read", order=order.order_id, error=repr(error))
            else:
                good.append(order)
        if bad:
            self._orders.delay(world_id, bad)
        return good

    def _look_up(self, world_id: str, orders: Sequence[OpenOrder]) -> tuple[int, list[OpenOrder]]:
        """Ask the venue for orders that were sent; return the changes, and the orders that never arrived."""
        for order in orders:
            if self._attempts.get(order.order_id, ("", 0.0))[0] != order.sent_at:
                # By another router, which may still be in the call: it does not know at once that it was
                # replaced when its connection to the database breaks.
                self._attempted(order, max(_SENT_WITHIN_S + CALL_LIMIT_S - _age_s(order), 0.0))
        cancelled = [order for order in orders if order.cancel_reason]
        if cancelled:
            self._calls.cancel(accepted_orders(cancelled))
        asked_at = time.monotonic()
        reports, failed = self._calls.find(accepted_orders(orders))
        answered = {report.order_id for report in reports} | failed
        absent = [order for order in orders if order.order_id not in answered]
        unknown = [
            order
            for order in absent
            if not order.acknowledged and self._cannot_arrive_any_more(order, asked_at)
        ]
        lost = [
            order for order in absent if order.acknowledged and self._is_forgotten_by_venue(order, asked_at)
        ]
        reports += map(_forgotten, lost)
        for report in reports:
            self._missing.pop(report.order_id, None)
        pauses = {order: _FAILED_S if order.order_id in failed else _look_again_s(order) for order in orders}
        open_ids = {report.order_id for report in reports if report.state not in ENDED}
        resting = [order for order in orders if order.order_id in open_ids and not order.cancel_reason]
        pauses |= self._resting(resting)
        return self._record(world_id, reports, pauses), unknown

    def _resting(self, orders: Sequence[OpenOrder]) -> dict[OpenOrder, float]:
        """Return the seconds until open orders are looked up again."""
        quiet = self._calls.quiet_s(accepted_orders(orders))
        return {
            order: max(_look_again_s(order), min(quiet.get(order.order_id, 0.0), _QUIET_LIMIT_S))
            for order in orders
        }

    def _send(self, world_id: str, orders: Sequence[OpenOrder]) -> int:
        """Send orders, those of a call at a time, and record what the venue says."""
        size = max(self._calls.broker.batch, 1)
        parts = (orders[start : start + size] for start in range(0, len(orders), size))
        return sum(self._send_at_once(world_id, part) for part in parts)

    def _send_at_once(self, world_id: str, orders: Sequence[OpenOrder]) -> int:
        until = time.monotonic() + _SENT_WITHIN_S
        marked = self._orders.mark_sent(world_id, orders, _LOOK_AGAIN_S[0])
        ended = len(orders) - len(marked)
        if not marked:
            return ended
        try:
            reports, failed = self._calls.place(accepted_orders(marked), until)
        finally:
            for order in marked:
                self._attempted(order)
        pauses = {order: _FAILED_S for order in marked if order.order_id in failed}
        return ended + max(self._record(world_id, reports, pauses), 1)

    def _record(self, world_id: str, reports: Sequence[OrderReport], pauses: dict[OpenOrder, float]) -> int:
        new = self._recorded.without(reports)
        changes = self._orders.record(world_id, new, pauses)
        self._recorded.note(new)
        for report in reports:
            if report.state in ENDED:
                self._attempts.pop(report.order_id, None)
        return changes

    def _attempted(self, order: OpenOrder, in_s: float = 0.0) -> None:
        """Remember that an attempt to send an order has ended by now, or has `in_s` seconds from now."""
        self._attempts[order.order_id] = (order.sent_at, time.monotonic() + in_s)
        while len(self._attempts) > _ATTEMPTS:
            self._attempts.pop(next(iter(self._attempts)))

    def _cannot_arrive_any_more(self, order: OpenOrder, asked_at: float) -> bool:
        """Return whether nothing of an order's last attempt was still in flight when the venue was asked."""
        return asked_at - self._attempts[order.order_id][1] > self._calls.broker.time_in_flight_s

    def _is_forgotten_by_venue(self, order: OpenOrder, asked_at: float) -> bool:
        """Return whether a venue that had acknowledged it has not known it for `time_in_flight_s`."""
        since = self._missing.setdefault(order.order_id, asked_at)
        return asked_at - since > self._calls.broker.time_in_flight_s


def _forgotten(order: OpenOrder) -> OrderReport:
    return OrderReport(
        order_id=order.order_id,
        state="cancelled",
        reason="the venue no longer knows the order; compare its fills there",
    )


def _look_again_s(order: OpenOrder) -> float:
    """Return the seconds until an order is looked up again: the longer it has been open, the rarer."""
    shortest, longest = _LOOK_AGAIN_S
    return min(max(_age_s(order) / 4, shortest), longest)


def _age_s(order: OpenOrder) -> float:
    """Return the seconds since an order was last marked as sent."""
    return (datetime.now(UTC) - datetime.fromisoformat(order.sent_at)).total_seconds()
