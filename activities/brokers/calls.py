"""Calls of one broker: in batches, and one by one where a batch fails; with the pauses after failures."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import TypeVar

import structlog
from pydantic import TypeAdapter

from activities.brokers.broker import CALL_LIMIT_S, AcceptedOrder, Broker
from activities.fence.open_order import OpenOrder
from activities.storage.elected import unreachable
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import OrderReport
from qmtl_sdk.contracts.texts import printable

# Seconds before the first call after a failure; they double with each failure.
_RETRY_S = 0.5

# Seconds between two calls after failures at most.
_RETRY_LIMIT_S = 30.0

# Seconds after the last failure when a fault counts no longer. Orders that wait are tried again sooner, and a
# broker that works again may have none left to show it. Then new ones are accepted, and the first that fails
# is a fault again.
_FAULT_S = 60.0

# Orders that cannot be sent, without one that can, where the broker has a fault: one alone says more about
# that order than about the broker. One that cannot be looked up or cancelled says nothing about others.
_FAULTY = 2

# Signs of the text of an error of ours that a fault shows.
_SHOWN = 200

_log = structlog.get_logger()

Call = Callable[[Sequence[AcceptedOrder], datetime], list[OrderReport] | None]

T = TypeVar("T")


class BrokerUnavailableError(Exception):
    """The venue cannot be reached."""


class BooksError(Exception):
    """The broker failed when it was asked for its books. Orders are not concerned."""


class BrokerCalls:
    """Calls a broker, which may raise anything: it is an extension."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._fault = ""
        self._failed_at = 0.0
        self._called_at = inf
        self._unsent: set[str] = set()
        """Ids of orders, `_FAULTY` at most, that could not be sent since one could."""
        self._failures = 0
        self._next_at = 0.0

    @property
    def fault(self) -> str:
        """Why orders cannot be sent; empty where they can."""
        now = time.monotonic()
        if now - self._called_at > CALL_LIMIT_S:
            return f"the broker {self.broker.name} does not answer"
        return self._fault if now - self._failed_at < _FAULT_S else ""

    @property
    def is_unavailable(self) -> bool:
        """Whether the venue could not be reached a moment ago, and is not asked yet."""
        return time.monotonic() < self._next_at

    def place(self, orders: Sequence[AcceptedOrder], until: float) -> tuple[list[OrderReport], set[str]]:
        """Send orders, but none after `until` on the monotonic clock.

        Returns reports, and the ids for which the broker failed. Orders without a report may or may not have
        arrived. One that the broker cannot take is rejected here. Raises BrokerUnavailableError.
        """
        takes = self.broker.capabilities.time_in_force
        able = [placed for placed in orders if placed.order.time_in_force in takes]
        rejected = [self._rejection(placed) for placed in orders if placed.order.time_in_force not in takes]
        reports, failed = self._call(self.broker.place, able, until)
        return rejected + reports, failed

    def find(self, orders: Sequence[AcceptedOrder]) -> tuple[list[OrderReport], set[str]]:
        """Look up orders. Returns reports, and the ids for which the broker failed, which is no answer.

        Raises BrokerUnavailableError.
        """
        return self._call(self.broker.find, orders)

    def quiet_s(self, orders: Sequence[AcceptedOrder]) -> dict[str, float]:
        """Return the seconds for which nothing can become of orders, by id; empty where the broker fails."""
        now = datetime.now(UTC)
        try:
            return {placed.order.order_id: float(self.broker.quiet_s(placed, now)) for placed in orders}
        except Exception as error:
            self._log_failure(orders, error)
            return {}

    def cancel(self, orders: Sequence[AcceptedOrder]) -> None:
        """Ask to cancel orders. Raises BrokerUnavailableError."""
        self._call(self.broker.cancel, orders)

    def ask(self, call: Callable[[datetime], object], shape: TypeAdapter[T]) -> T:
        """Ask the broker for a part of its books.

        Raises BooksError, also where the venue cannot be reached: it may take orders all the same.
        """
        try:
            with self._timed() as now:
                answer = call(now)
            return shape.validate_python(answer)
        except Exception as error:
            _log.error("a broker's books cannot be read", broker=self.broker.name, error=repr(error))
            raise BooksError(f"{_what(error)} of the broker {self.broker.name}") from error

    def _rejection(self, placed: AcceptedOrder) -> OrderReport:
        reason = f"the broker {self.broker.name} takes no {placed.order.time_in_force} orders"
        return OrderReport(order_id=placed.order.order_id, state="rejected", reason=reason)

    def _call(
        self, call: Call, orders: Sequence[AcceptedOrder], until: float = inf
    ) -> tuple[list[OrderReport], set[str]]:
        looks = self.broker.lookup_batch if call != self.broker.place else 0
        size, reports, failed = max(looks or self.broker.batch, 1), list[OrderReport](), set[str]()
        for start in range(0, len(orders), size):
            reports += self._batch(call, orders[start : start + size], failed, until)
        asked = {order.order_id for order, _ in orders}
        return [report for report in reports if report.order_id in asked], failed

    def _batch(
        self, call: Call, orders: Sequence[AcceptedOrder], failed: set[str], until: float
    ) -> list[OrderReport]:
        if time.monotonic() > until:
            return []
        try:
            with self._timed() as now:
                answer = call(orders, now) or ()
            reports = [OrderReport.model_validate(report) for report in answer]
        except Exception as error:
            self._log_failure(orders, error)
            if unreachable(error):
                self._note_fault(error)
                self._failures += 1
                self._next_at = time.monotonic() + retry_pause_s(self._failures, _RETRY_S, _RETRY_LIMIT_S)
                raise BrokerUnavailableError from error
            if len(orders) == 1:
                failed.add(orders[0][0].order_id)
                if call == self.broker.place:
                    self._note_unsent(orders[0][0].order_id, error)
                return []
            return [report for one in orders for report in self._batch(call, [one], failed, until)]
        self._failures = 0
        if call == self.broker.place:
            self._unsent.clear()
        if len(self._unsent) < _FAULTY:
            self._fault = ""
        return reports

    @contextmanager
    def _timed(self) -> Iterator[datetime]:
        """Let others see how long the call takes. Gives the time at which it begins."""
        self._called_at = time.monotonic()
        try:
            yield datetime.now(UTC)
        finally:
            self._called_at = inf

    def _note_unsent(self, order_id: str, error: Exception) -> None:
        if len(self._unsent) < _FAULTY:
            self._unsent.add(order_id)
        if len(self._unsent) == _FAULTY:
            self._note_fault(error)

    def _note_fault(self, error: Exception) -> None:
        self._fault = f"{_what(error)} of the broker {self.broker.name}"
        self._failed_at = time.monotonic()

    def _log_failure(self, orders: Sequence[AcceptedOrder], error: Exception) -> None:
        _log.error(
            "a broker failed",
            broker=self.broker.name,
            orders=[order.order_id for order, _ in orders[:10]],
            count=len(orders),
            error=repr(error),
        )


def _what(error: Exception) -> str:
    """Say what failed. The text of another error is its package's, and may hold anything."""
    return printable(error.message, _SHOWN) if isinstance(error, QmtlError) else type(error).__name__


def accepted_orders(orders: Sequence[OpenOrder]) -> list[AcceptedOrder]:
    """Return orders in the form that brokers take."""
    return [AcceptedOrder(order.order(), order.accepted_at) for order in orders]
