"""From wanted changes to whole lots, for each instrument in a scope.

1. Changes are added up exactly over what the scope nets: a world's strategies, nothing, or all worlds.
2. A sum below the instrument's `min_trade_notional` is dropped; an equal one is kept.
3. The rest is rounded toward zero to the lot.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, reduce
from operator import add

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, EXACT, FIGURE_PLACES, exact_sum, plain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instrument
from qmtl_sdk.contracts.rebalance_plan import DropReason, Phase, reduces
from qmtl_sdk.contracts.rebalancing import RebalanceScope


@dataclass(frozen=True, slots=True)
class Holding:
    """What a strategy holds of an instrument, and by how much that should change (`gap`)."""

    world_id: str
    strategy_id: str
    instrument: Instrument
    quantity: Decimal
    gap: Fraction


@dataclass(frozen=True)
class Trade:
    """The netted change of an instrument: `gap` is wanted, `lots` are ordered (both signed)."""

    phase: Phase
    world_id: str
    strategy_id: str
    instrument: Instrument
    mark: Decimal
    position: Decimal
    gap: Fraction
    lots: int
    holdings: tuple[Holding, ...]

    @cached_property
    def quantity(self) -> Decimal:
        """What is ordered, signed."""
        return EXACT.multiply(Decimal(self.lots), self.instrument.lot)

    @cached_property
    def after(self) -> Decimal:
        """The position once the order is filled."""
        return EXACT.add(self.position, self.quantity)

    @cached_property
    def notional(self) -> Decimal:
        """The absolute notional of what is ordered."""
        return EXACT.multiply(self.quantity, self.mark).copy_abs()

    @cached_property
    def reference_price(self) -> Decimal:
        """The venue's price that is nearest to the mark, or the mark where there is none."""
        if self.instrument.tick is None:
            return self.mark
        ticks = round(Fraction(self.mark) / Fraction(self.instrument.tick))
        price = EXACT.multiply(Decimal(ticks), self.instrument.tick)
        return price if 0 < price < AMOUNT_LIMIT else self.mark

    @property
    def cost(self) -> Decimal:
        """Fee and slippage, as estimated."""
        return EXACT.scaleb(EXACT.multiply(self.notional, self.instrument.cost_bps), -4)

    @property
    def locks(self) -> Decimal:
        """By how much the margin of the position grows (negative: it is released)."""
        grown = EXACT.subtract(self.after.copy_abs(), self.position.copy_abs())
        return EXACT.multiply(EXACT.multiply(grown, self.mark), self.instrument.margin_rate)

    def cash_need(self, times: int) -> Decimal:
        """Return the cash that the trade takes (negative: releases), at its reference price if that is worse.

        `times`: 2 where it is taken back, which releases its margin, costs as much again, and has the worse
        price if it had the better one. A part f of the trade takes at most f of this, where this is positive:
        margin is convex in the quantity.
        """
        loss = EXACT.multiply(self.quantity, EXACT.subtract(self.reference_price, self.mark))
        once = exact_sum((self.locks, self.cost, max(loss, Decimal(0))))
        if times == 1:
            return once
        return max(once, exact_sum((self.cost, self.cost, loss.copy_abs())))

    @cached_property
    def reduces(self) -> bool:
        """Whether the order brings the position nearer to zero without crossing it."""
        return reduces(self.position, self.quantity)

    @property
    def drop_reason(self) -> DropReason | None:
        """Why nothing is ordered although something was wanted. None: something is, or nothing was."""
        if self.lots or not any(holding.gap for holding in self.holdings):
            return None
        if not self.gap:
            return "netted"
        return "below_min_notional" if _is_small(self.gap, self.mark, self.instrument) else "below_lot"

    def limited_to(self, lots: int) -> "Trade":
        """Return the trade with fewer lots: none where they would be below `min_trade_notional`."""
        limited = replace(self, lots=lots)
        return replace(self, lots=0) if limited.notional < self.instrument.min_trade_notional else limited


def lots_of(quantity: Fraction, lot: Decimal) -> int:
    """Return a quantity in whole lots, rounded toward zero."""
    numerator, denominator = lot.as_integer_ratio()
    count = abs(quantity.numerator) * denominator // (quantity.denominator * numerator)
    return count if quantity > 0 else -count


def net(
    holdings: Iterable[Holding],
    marks: Mapping[tuple[str, str], Decimal],
    scope: RebalanceScope,
    phase: Phase = "scaling",
) -> list[Trade]:
    """Return the change of every instrument that is held in the scope, sorted.

    Raises QmtlError: E_QUANTITY_RANGE.
    """
    groups: dict[tuple[str, str, str, str], list[Holding]] = {}
    for holding in holdings:
        groups.setdefault(_scope_key(holding, scope), []).append(holding)
    return [_netted(key, groups[key], marks[key[2:]], phase) for key in sorted(groups)]


def _scope_key(holding: Holding, scope: RebalanceScope) -> tuple[str, str, str, str]:
    world = "" if scope == "global" else holding.world_id
    strategy = holding.strategy_id if scope == "strategy" else ""
    return world, strategy, holding.instrument.venue, holding.instrument.symbol


def _netted(key: tuple[str, str, str, str], held: list[Holding], mark: Decimal, phase: Phase) -> Trade:
    instrument = held[0].instrument
    gap = reduce(add, (holding.gap for holding in held))
    lots = 0 if _is_small(gap, mark, instrument) else lots_of(gap, instrument.lot)
    trade = Trade(
        phase=phase,
        world_id=key[0],
        strategy_id=key[1],
        instrument=instrument,
        mark=mark,
        position=exact_sum(holding.quantity for holding in held),
        gap=gap,
        lots=lots,
        holdings=tuple(held),
    )
    _require_in_range(trade)
    return trade


def _is_small(quantity: Fraction, mark: Decimal, instrument: Instrument) -> bool:
    if not instrument.min_trade_notional:
        return False
    price, price_unit = mark.as_integer_ratio()
    least, least_unit = instrument.min_trade_notional.as_integer_ratio()
    return abs(quantity.numerator) * price * least_unit < least * price_unit * quantity.denominator


def _require_in_range(trade: Trade) -> None:
    """Raise QmtlError (E_QUANTITY_RANGE) for an order that is too large to be written."""
    if trade.quantity.copy_abs() >= AMOUNT_LIMIT:
        raise QmtlError(
            "E_QUANTITY_RANGE",
            f"{trade.quantity} of {trade.instrument.symbol} is beyond {AMOUNT_LIMIT}",
            "correct the positions or the price",
            symbol=trade.instrument.symbol,
        )


def truncated(value: Fraction) -> Decimal:
    """Return a fraction as a figure, rounded toward zero."""
    count = abs(value.numerator) * 10**FIGURE_PLACES // value.denominator
    return plain(EXACT.scaleb(Decimal(count if value > 0 else -count), -FIGURE_PLACES))


def rounded(value: Fraction) -> Decimal:
    """Return a fraction to the nearest figure of 12 places, to be read by people."""
    return plain(EXACT.scaleb(Decimal(round(value * 10**AMOUNT_PLACES)), -AMOUNT_PLACES))
