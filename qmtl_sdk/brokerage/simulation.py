"""Runs targets over bars: into orders, fills, positions, cash and equity.

At each close, in this order:

1. Open orders meet the bars that close (`fills`). Symbols are taken by name, orders of a symbol by age.
2. The closes mark the positions.
3. A target that is new or differs from the last one is sized, by equity for weights, in whole lots toward
   zero. An unchanged target keeps its units: a price that drifts is no reason to trade.
4. The order is the difference of target, position and open orders. Where there is one, open orders of the
   symbol are cancelled and one order is placed, which can be filled from the next bar on.

A simulation that is stepped bar by bar and one over all bars make the same fills.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from typing import NamedTuple

import numpy as np

from qmtl_sdk.brokerage.account import SimulatedAccount
from qmtl_sdk.brokerage.fills import MarketBar, place, work_all
from qmtl_sdk.brokerage.models import ExecutionModel, as_decimal
from qmtl_sdk.brokerage.orders import SimulatedFill, WorkingOrder, WorkingState
from qmtl_sdk.brokerage.targets import CloseTarget, ticket_of, units_of
from qmtl_sdk.contracts.amounts import EXACT
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import CLOSE, Bars


@dataclass(frozen=True, slots=True)
class AccountRow:
    """The account at a close (`at`: ns, UTC), with positions at their marks."""

    at: int
    cash: Decimal
    equity: Decimal
    positions: Mapping[str, Decimal]


class CloseEvent(NamedTuple):
    """What is known at a close: the bars that end there, by symbol, and the targets decided there."""

    at: int
    bars: Mapping[str, MarketBar]
    targets: tuple[CloseTarget, ...]


class Simulation:
    """A strategy's targets, an account, and its orders at a simulated venue.

    `execution`: how each symbol's orders are sent and filled; the plain model for others. Raises QmtlError:
    E_EXECUTION where there is no cash to begin with.
    """

    def __init__(self, initial_cash: Decimal, execution: Mapping[str, ExecutionModel] | None = None) -> None:
        if not initial_cash > 0:
            raise QmtlError(
                "E_EXECUTION", f"the account begins with {initial_cash}", "give it cash, more than 0"
            )
        self.account = SimulatedAccount(initial_cash)
        self.rows: list[AccountRow] = []
        self._execution = dict(execution or {})
        self._plain = ExecutionModel()
        self._ended: list[WorkingOrder] = []
        self._open: dict[str, list[WorkingOrder]] = {}
        self._marks: dict[str, Decimal] = {}
        self._targets: dict[str, CloseTarget] = {}
        self._units: dict[str, Decimal] = {}

    @property
    def orders(self) -> list[WorkingOrder]:
        """All orders, oldest first."""
        found = [*self._ended, *(order for orders in self._open.values() for order in orders)]
        return sorted(found, key=lambda order: (order.ticket.placed_at, order.ticket.order_id))

    @property
    def fills(self) -> list[SimulatedFill]:
        """All fills, oldest first."""
        found = [fill for order in self.orders for fill in order.fills]
        return sorted(found, key=lambda fill: (fill.at, fill.fill_id))

    def run(self, events: Iterable[CloseEvent]) -> "Simulation":
        """Step over all events and return the simulation."""
        for event in events:
            self.step(event)
        return self

    def step(self, event: CloseEvent) -> AccountRow:
        """Take the next close, and return the account there."""
        for symbol, bar in sorted(event.bars.items()):
            self._meet(symbol, bar)
            if bar.close is not None:
                self._marks[symbol] = bar.close
        equity = self.account.equity(self._marks)
        for target in event.targets:
            if target.tradable:
                self._follow(target, equity, event.at)
        row = AccountRow(event.at, self.account.cash, equity, self.account.positions)
        self.rows.append(row)
        return row

    def _meet(self, symbol: str, bar: MarketBar) -> None:
        """Let the open orders of a symbol meet a bar, and book their fills."""
        before = self._open.get(symbol, [])
        model = self._execution_of(symbol).fills
        after = work_all(before, bar, model, self.account.traded)
        for old, new in zip(before, after, strict=True):
            for fill in new.fills[len(old.fills) :]:
                self.account = self.account.after(fill)
        self._replace(symbol, after)

    def _follow(self, target: CloseTarget, equity: Decimal, at: int) -> None:
        """Place the order that brings the position to the target; none where it is there already."""
        price = target.price or self._marks.get(target.symbol)
        if price is None:
            return  # nothing can be sized before there is a price
        symbol, lot = target.symbol, self._execution_of(target.symbol).fills.lot
        target = replace(target, price=price)
        if target.unit == "quantity":
            self._place(target, units_of(target, equity, price, lot), at)
            return
        last = self._targets.get(symbol)
        if last is None or (last.unit, last.value) != (target.unit, target.value):
            self._targets[symbol] = target
            self._units[symbol] = units_of(target, equity, price, lot)
        delta = EXACT.subtract(self._units[symbol], self.account.position(symbol))
        waiting = [order.ticket.sign * order.remaining for order in self._open.get(symbol, [])]
        if delta != sum(waiting, Decimal(0)):
            self._replace(symbol, [_replaced(order) for order in self._open.get(symbol, [])])
            self._place(target, delta, at)

    def _place(self, target: CloseTarget, delta: Decimal, at: int) -> None:
        if delta:
            execution = self._execution_of(target.symbol)
            ticket = ticket_of(f"{target.symbol}@{at}", target, delta, at, execution)
            orders = [*self._open.get(target.symbol, []), place(ticket, execution.fills)]
            self._replace(target.symbol, orders)

    def _replace(self, symbol: str, orders: list[WorkingOrder]) -> None:
        self._ended += [order for order in orders if not order.is_open]
        self._open[symbol] = [order for order in orders if order.is_open]

    def _execution_of(self, symbol: str) -> ExecutionModel:
        return self._execution.get(symbol, self._plain)


def _replaced(order: WorkingOrder) -> WorkingOrder:
    return order.ended(WorkingState.CANCELLED, "its target has changed")


def close_events(
    bars: Mapping[str, Bars], targets: Iterable[tuple[int, CloseTarget]]
) -> Iterator[CloseEvent]:
    """Yield the closes of all bars in order, with the targets that were decided there.

    `bars`: by symbol. `targets`: with the close at which each was decided (ns, UTC). Raises QmtlError:
    E_EXECUTION where a target's symbol has no bars.
    """
    decided = sorted(targets, key=lambda item: (item[0], item[1].symbol))
    unknown = sorted({target.symbol for _, target in decided} - bars.keys())
    if unknown:
        raise QmtlError(
            "E_EXECUTION", f"there are no bars of {', '.join(unknown)}", "pass the bars of each symbol"
        )
    by_close = {
        at: tuple(target for _, target in group) for at, group in groupby(decided, lambda item: item[0])
    }
    closing: dict[int, dict[str, MarketBar]] = {at: {} for at in by_close}
    for symbol, found in bars.items():
        for close, bar in zip(found.closes.tolist(), market_bars(found), strict=True):
            closing.setdefault(close, {})[symbol] = bar
    for at in sorted(closing):
        yield CloseEvent(at, closing[at], by_close.get(at, ()))


def market_bars(bars: Bars) -> Iterator[MarketBar]:
    """Yield the bars in Decimal. A price that the data has no column for is the close."""
    close = bars.columns[CLOSE]
    prices = [_decimals(bars.columns.get(name, close)) for name in ("open", "high", "low")]
    volumes = _decimals(bars.columns.get("volume", np.full(len(bars), np.nan)))
    for row in zip(bars.ts.tolist(), *prices, _decimals(close), volumes, strict=True):
        yield MarketBar(*row)


def _decimals(values: np.ndarray) -> list[Decimal | None]:
    return [None if np.isnan(value) else as_decimal(value) for value in values.tolist()]
