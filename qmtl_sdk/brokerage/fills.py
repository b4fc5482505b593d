"""The fill model: what becomes of an order in a bar.

`work` is one pure function over an order, its fills so far, and a bar. Called as each bar closes, it makes
the same fills as over all bars. A backtest (`reports.backtest`) uses it, and so does the paper broker where
its world says so (`activities.brokers.bar_fills`).

1. A bar that opened before the order was placed, or has no price, changes nothing.
2. A DAY order that meets a bar of another UTC day than its first one expires.
3. A market order fills at the model's price with slippage. A limit order fills only in a bar that reaches its
   limit: at the open where the bar opens at the limit or beyond it, else at the limit, without slippage.
4. It gets the model's share of the bar's volume, less what earlier orders took; the rest stays open.
5. A FOK order that does not get all of it in its first bar is cancelled without a fill; an IOC order is
   cancelled after its first bar.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import NamedTuple

from qmtl_sdk.brokerage.fees import fee_of
from qmtl_sdk.brokerage.models import BPS, CALCULATION, PLACE, FillModel
from qmtl_sdk.brokerage.orders import OrderTicket, SimulatedFill, WorkingOrder, WorkingState
from qmtl_sdk.contracts.amounts import EXACT

_DAY_NS = 86_400 * 10**9


@dataclass(frozen=True, slots=True)
class MarketBar:
    """A bar of one instrument that opens at `ts` (ns, UTC). None: the value is missing."""

    ts: int
    open: Decimal | None
    high: Decimal | None
    low: Decimal | None
    close: Decimal | None
    volume: Decimal | None = None


class MarketUse(NamedTuple):
    """What earlier orders took of the bar's volume, and the notional that the account has traded."""

    volume: Decimal = Decimal(0)
    traded: Decimal = Decimal(0)


class _Price(NamedTuple):
    price: Decimal
    maker: bool


def place(ticket: OrderTicket, model: FillModel) -> WorkingOrder:
    """Return the order as the venue takes it: open, or rejected by the model."""
    order = WorkingOrder(ticket)
    if ticket.symbol in model.reject_symbols:
        return order.ended(WorkingState.REJECTED, f"the model rejects orders of {ticket.symbol}")
    if model.max_quantity is not None and ticket.quantity > model.max_quantity:
        return order.ended(WorkingState.REJECTED, f"the model rejects more than {model.max_quantity}")
    return order


def work(order: WorkingOrder, bar: MarketBar, model: FillModel, use: MarketUse | None = None) -> WorkingOrder:
    """Return the order after a bar of its symbol."""
    ticket, use = order.ticket, use or MarketUse()
    if not order.is_open or bar.ts < ticket.placed_at or bar.open is None:
        return order
    day = bar.ts // _DAY_NS
    if ticket.time_in_force == "DAY" and order.day not in (None, day):
        return order.ended(WorkingState.EXPIRED, "its day is over")
    order = order if order.day is not None else replace(order, day=day)
    reached = _reached(ticket, bar, model)
    quantity = _available(order, bar, model, use.volume) if reached else Decimal(0)
    if ticket.time_in_force == "FOK" and quantity < order.remaining:
        return order.ended(WorkingState.CANCELLED, "it could not be filled at once")
    if reached and quantity:
        order = _filled(order, _fill(order, reached, quantity, bar.ts), model, use.traded)
    if ticket.time_in_force == "IOC" and order.is_open:
        return order.ended(WorkingState.CANCELLED, "the rest was not filled at once")
    return order


def work_all(
    orders: Sequence[WorkingOrder], bar: MarketBar, model: FillModel, traded: Decimal = Decimal(0)
) -> list[WorkingOrder]:
    """Return one symbol's orders after a bar. They share its volume, the first to come first."""
    done, taken = [], Decimal(0)
    for order in orders:
        after = work(order, bar, model, MarketUse(taken, traded))
        for new in after.fills[len(order.fills) :]:
            taken = EXACT.add(taken, new.quantity)
            traded = EXACT.add(traded, new.notional)
        done.append(after)
    return done


def replay(ticket: OrderTicket, bars: Iterable[MarketBar], model: FillModel) -> WorkingOrder:
    """Return an order after all bars: what `work` makes of it, one bar after the other."""
    order = place(ticket, model)
    for bar in bars:
        order = work(order, bar, model)
    return order


def _reached(ticket: OrderTicket, bar: MarketBar, model: FillModel) -> _Price | None:
    """Return the price that the order gets in the bar; None where the bar does not reach its limit."""
    assert bar.open is not None  # `work` skips such a bar
    high, low = (bar.open if value is None else value for value in (bar.high, bar.low))
    limit = ticket.limit_price
    if limit is None:
        base = bar.open if model.price == "open" else CALCULATION.divide(EXACT.add(high, low), Decimal(2))
        price = EXACT.multiply(base, 1 + ticket.sign * EXACT.multiply(model.slippage_bps, BPS))
        against = ROUND_CEILING if ticket.side == "buy" else ROUND_FLOOR
        return _Price(price.quantize(PLACE, against, CALCULATION), maker=False)
    if ticket.sign * bar.open <= ticket.sign * limit:
        return _Price(bar.open, maker=False)
    reaches = low <= limit if ticket.side == "buy" else high >= limit
    return _Price(limit, maker=True) if reaches else None


def _available(order: WorkingOrder, bar: MarketBar, model: FillModel, taken: Decimal) -> Decimal:
    """Return what the order gets of the bar: its rest, or the share of the volume in whole lots."""
    if model.volume_share is None:
        return order.remaining
    share = EXACT.subtract(EXACT.multiply(bar.volume or Decimal(0), model.volume_share), taken)
    return order.remaining if order.remaining <= share else in_lots(max(share, Decimal(0)), model.lot)


def in_lots(quantity: Decimal, lot: Decimal) -> Decimal:
    """Return a quantity rounded toward zero to whole lots."""
    return EXACT.multiply(CALCULATION.divide_int(quantity, lot), lot)


def _fill(order: WorkingOrder, reached: _Price, quantity: Decimal, at: int) -> SimulatedFill:
    ticket = order.ticket
    fill_id = f"{ticket.order_id}/{len(order.fills) + 1}"
    return SimulatedFill(fill_id, ticket.symbol, ticket.side, quantity, reached.price, at, reached.maker)


def _filled(order: WorkingOrder, fill: SimulatedFill, model: FillModel, traded: Decimal) -> WorkingOrder:
    fill = replace(fill, fee=fee_of(model.fees, fill, order.fills, traded))
    order = replace(order, fills=(*order.fills, fill))
    return order.ended(WorkingState.FILLED) if order.filled == order.ticket.quantity else order
