"""Fills of orders from the bars of their worlds, by the fill model of `qmtl_sdk.brokerage`.

1. An order counts as placed at the close at which it was decided, as in a backtest, if the bar that opened
   then still runs when it is accepted; else when it is accepted. All times are of the world's clock.
2. As each bar closes, the order meets it (`fills.work_all`). Each order has the model's share of a bar's
   volume for itself, and tiers of fees count what the order itself has traded: what becomes of an order does
   not depend on others, nor on when it is looked at.
3. So the same fills, under the same ids, are made again after a crash. An id is that of the order and of the
   bar's opening time.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from math import inf

from activities.brokers.bars import BarReader, Stream, stream_of
from activities.brokers.broker import AcceptedOrder
from qmtl_sdk.brokerage.fills import place, work_all
from qmtl_sdk.brokerage.models import PLACE, FillModel, as_decimal
from qmtl_sdk.brokerage.orders import OrderTicket, SimulatedFill, WorkingOrder, WorkingState
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fees import PercentFee
from qmtl_sdk.contracts.fills import MAX_FILLS, Fill
from qmtl_sdk.contracts.instruments import Instruments
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.worlds import World, WorldSpec
from qmtl_sdk.data.bars import NS, from_ns, to_ns

# Orders that are remembered at most; others are followed from their beginning when they are seen again.
_ORDERS = 100_000

# The longest id of an order from which ids of fills are made as they are.
_LONGEST_ID = 100


@dataclass
class _Followed:
    """An order with the stream that it meets, and the close (ns) of the newest bar that it has met."""

    order: WorkingOrder
    stream: Stream
    model: FillModel
    met: int = field(init=False)

    def __post_init__(self) -> None:
        self.met = self.order.ticket.placed_at


class BarFills:
    """Follows the orders of an account through the bars of their worlds."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._reader = BarReader()
        self._followed: dict[str, _Followed] = {}

    def reports(
        self, placed: AcceptedOrder, world: World, now: datetime, deadline: float
    ) -> list[OrderReport]:
        """Report what became of an order by now, or by the bars that are read before the deadline.

        The deadline is one of the monotonic clock; once it is over, what is known of the order is reported.
        Empty where the world has no bars of its symbol. Raises QmtlError where they cannot be read.
        """
        followed = self._follow(placed, world)
        if followed is None:
            return []
        self._advance(followed, world, now, deadline)
        if not followed.order.is_open:  # asked again, it is followed again
            self._followed.pop(placed.order.order_id, None)
        return self._reports(followed.order)

    def quiet_s(self, order_id: str, world: World, now: datetime) -> float | None:
        """Return the seconds until the next bar can be there that an order meets.

        None for one that is not followed.
        """
        followed = self._followed.get(order_id)
        if followed is None:
            return None
        speed = followed.stream.speed
        left_ns = followed.met + followed.stream.interval_ns - to_ns(world.now(now))
        if left_ns > 0:
            return left_ns / NS / speed if speed else inf
        return self._reader.quiet_s(followed.stream, followed.met)

    def cancel(self, placed: AcceptedOrder, world: World, now: datetime, deadline: float) -> bool:
        """Cancel what is not filled by now. Returns whether the world has bars of the order's symbol.

        Bars that cannot be read keep no order from being cancelled. One that has not met all bars by the
        deadline stays open, as it may be filled by the others: the next call goes on.
        """
        followed = self._follow(placed, world)
        if followed is None:
            return False
        met_all = True
        with suppress(QmtlError):
            met_all = self._advance(followed, world, now, deadline)
        if followed.order.is_open and met_all:
            followed.order = followed.order.ended(WorkingState.CANCELLED)
        return True

    def _follow(self, placed: AcceptedOrder, world: World) -> _Followed | None:
        order_id = placed.order.order_id
        found = self._followed.get(order_id)
        if found is None:
            stream = stream_of(world, placed.order.symbol)
            if stream is None:
                return None
            model = fill_model(world.spec, self._account, placed.order.symbol)
            ticket = _ticket(placed, world, stream.interval_ns)
            found = _Followed(place(ticket, model), stream, model)
            while len(self._followed) >= _ORDERS:
                self._followed.pop(next(iter(self._followed)))
            self._followed[order_id] = found
        return found

    def _advance(self, followed: _Followed, world: World, now: datetime, deadline: float) -> bool:
        """Let an order meet the bars that have closed by now; return whether it met all by the deadline."""
        until, before = to_ns(world.now(now)), -1
        while followed.order.is_open and before != followed.met:
            if time.monotonic() >= deadline:
                return False
            before = followed.met
            for close, bar in self._reader.closed(followed.stream, followed.met, until):
                if bar.open is not None and bar.open > 0:
                    traded = exact_sum(fill.notional for fill in followed.order.fills)
                    (followed.order,) = work_all([followed.order], bar, followed.model, traded)
                followed.met = close
                if not followed.order.is_open:
                    return True
        return True

    def _reports(self, order: WorkingOrder) -> list[OrderReport]:
        """Build reports with all fills of an order, as many as one holds in each."""
        state = order.state.value
        if order.is_open:
            state = "partially_filled" if order.fills else "sent"
        fills = [self._fill(order.ticket, fill) for fill in order.fills]
        parts = [fills[start : start + MAX_FILLS] for start in range(0, len(fills), MAX_FILLS)] or [[]]
        about = {"order_id": order.ticket.order_id, "state": state, "reason": order.reason}
        return [OrderReport.model_validate({**about, "fills": part}) for part in parts]

    def _fill(self, ticket: OrderTicket, fill: SimulatedFill) -> Fill:
        order_id = ticket.order_id
        named = order_id if len(order_id) <= _LONGEST_ID else hash_parts(order_id)
        return Fill(
            fill_id=f"{named}@{fill.at}",
            quantity=fill.quantity,
            price=fill.price,
            fee=fill.fee,
            account=self._account,
            at=from_ns(fill.at),
        )


def fill_model(spec: WorldSpec, account: str, symbol: str) -> FillModel:
    """Return how the paper broker fills orders of a symbol in a world, from bars."""
    rules = spec.execution
    return FillModel(
        price="mid" if rules.fill == "next_mid" else "open",
        slippage_bps=as_decimal(rules.slippage_bps),
        volume_share=rules.volume_share,
        lot=_lot(spec, account, symbol),
        fees=rules.fees or PercentFee(bps=as_decimal(rules.fee_bps)),
        reject_symbols=rules.reject_symbols,
        max_quantity=rules.max_quantity,
    )


def _lot(spec: WorldSpec, account: str, symbol: str) -> Decimal:
    """Return the lot of a symbol; the smallest amount where its rules name none."""
    try:
        return Instruments(spec.instruments).find(account, symbol).lot
    except QmtlError:
        return PLACE


def _ticket(placed: AcceptedOrder, world: World, interval_ns: int) -> OrderTicket:
    order, accepted_at = placed
    return OrderTicket(
        order.order_id,
        order.symbol,
        order.side,
        order.quantity,
        _placed_at(order, to_ns(world.now(accepted_at)), interval_ns),
        time_in_force=order.time_in_force,
    )


def _placed_at(order: Order, accepted: int, interval_ns: int) -> int:
    """Return when an order counts as placed (ns, world time)."""
    decided = to_ns(order.decided_at) if order.decided_at is not None else accepted
    return decided if decided <= accepted < decided + interval_ns else accepted
