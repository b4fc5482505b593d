"""From wanted changes to whole lots, for each instrument in a scope.

1. Changes are added up exactly over what the scope nets: a world's strategies, nothing, or all worlds.
2. A sum below the instrument's `min_trade_notional` is dropped; an equal one is kept.
3. The rest is rounded toward zero to the lot.
4. What is ordered, and what strategies exchange with each other, is divided among them in whole lots.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from qmtl_sdk.contracts.amounts import AMOUNT_LIMIT, AMOUNT_PLACES, EXACT, FIGURE_PLACES
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instrument
from qmtl_sdk.contracts.rebalance_plan import DeltaPart, DropReason, Phase, reduces
from qmtl_sdk.contracts.rebalancing import RebalanceScope


@dataclass(frozen=True, slots=True)
class Holding:
    """What a strategy holds of an instrument, and by how much that should change (`gap`)."""

    world_id: str
    strategy_id: str
    instrument: Instrument
    quantity: Decimal
    gap: Fraction


@dataclass(frozen=True, slots=True)
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

    @property
    def quantity(self) -> Decimal:
        """What is ordered, signed."""
        return EXACT.multiply(Decimal(self.lots), self.instrument.lot)

    @property
    def after(self) -> Decimal:
        """The position once the order is filled."""
        return EXACT.add(self.position, self.quantity)

    @property
    def notional(self) -> Fraction:
        """The absolute notional of what is ordered."""
        return abs(self.lots) * Fraction(self.instrument.lot) * Fraction(self.mark)

    @property
    def cost(self) -> Fraction:
        """Fee and slippage, as estimated."""
        return self.notional * Fraction(self.instrument.cost_bps) / 10_000

    @property
    def locks(self) -> Fraction:
        """By how much the margin of the position grows (negative: it is released)."""
        grown = EXACT.subtract(self.after.copy_abs(), self.position.copy_abs())
        return Fraction(grown) * Fraction(self.mark) * Fraction(self.instrument.margin_rate)

    def cash_need(self, times: int) -> Fraction:
        """Return the cash that the trade takes (negative: releases), with its cost `times` times.

        A part f of it takes at most f of this, where this is positive: margin is convex in the quantity.
        """
        return self.locks + times * self.cost

    @property
    def reduces(self) -> bool:
        """Whether the order brings the position nearer to zero without crossing it."""
        return reduces(self.position, self.quantity)

    @property
    def wanted_lots(self) -> int:
        """The lots that the gap asks for."""
        return lots_of(self.gap, self.instrument.lot)

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
        ordered = lots * Fraction(self.instrument.lot)
        return replace(self, lots=0 if _is_small(ordered, self.mark, self.instrument) else lots)

    def reversed(self) -> "Trade":
        """Return the trade that takes this one back."""
        lot = Fraction(self.instrument.lot)
        back = tuple(
            replace(self.holdings[0], world_id=part.world_id, strategy_id=part.strategy_id, gap=-lot * lots)
            for part, lots in _divided(self)
        )
        gap = -self.lots * lot
        return replace(self, phase="unwind", position=self.after, gap=gap, lots=-self.lots, holdings=back)


def lots_of(quantity: Fraction, lot: Decimal) -> int:
    """Return a quantity in whole lots, rounded toward zero."""
    return math.trunc(quantity / Fraction(lot))


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
    position = Decimal(0)
    gap = Fraction()
    for holding in held:
        position = EXACT.add(position, holding.quantity)
        gap += holding.gap
    lots = 0 if _is_small(gap, mark, instrument) else lots_of(gap, instrument.lot)
    trade = Trade(
        phase=phase,
        world_id=key[0],
        strategy_id=key[1],
        instrument=instrument,
        mark=mark,
        position=position,
        gap=gap,
        lots=lots,
        holdings=tuple(held),
    )
    _require_in_range(trade)
    return trade


def _is_small(quantity: Fraction, mark: Decimal, instrument: Instrument) -> bool:
    return abs(quantity) * Fraction(mark) < Fraction(instrument.min_trade_notional)


def _require_in_range(trade: Trade) -> None:
    """Raise QmtlError (E_QUANTITY_RANGE) for an order that is too large to be written."""
    if trade.quantity.copy_abs() >= AMOUNT_LIMIT:
        raise QmtlError(
            "E_QUANTITY_RANGE",
            f"{trade.quantity} of {trade.instrument.symbol} is beyond {AMOUNT_LIMIT}",
            "correct the positions or the price",
            symbol=trade.instrument.symbol,
        )


def parts_of(trade: Trade) -> tuple[DeltaPart, ...]:
    """Return what each strategy gets of a trade: whole lots that add up to it exactly.

    Strategies that want opposite changes exchange what nets out. Unless limits cut the order, each gets what
    it wants to within one lot.
    """
    return tuple(part for part, _ in _divided(trade))


def _divided(trade: Trade) -> list[tuple[DeltaPart, int]]:
    lot = Fraction(trade.instrument.lot)
    sign = -1 if trade.gap < 0 else 1
    wanted = {(item.world_id, item.strategy_id): Fraction() for item in trade.holdings}
    for item in trade.holdings:
        wanted[item.world_id, item.strategy_id] += item.gap / lot * sign
    along = {key: lots for key, lots in wanted.items() if lots > 0}
    against = {key: -lots for key, lots in wanted.items() if lots < 0}
    total = math.floor(sum(along.values()))
    exchanged = total - abs(trade.wanted_lots)
    ordered = exchanged + abs(trade.lots)
    if ordered < total:
        share = Fraction(ordered) / sum(along.values())
        along = {key: lots * share for key, lots in along.items()}
    lots = {key: sign * count for key, count in _apportioned(along, ordered).items()}
    lots.update({key: -sign * count for key, count in _apportioned(against, exchanged).items()})
    return [
        (
            DeltaPart(
                world_id=key[0],
                strategy_id=key[1],
                quantity=EXACT.multiply(Decimal(count), trade.instrument.lot),
            ),
            count,
        )
        for key, count in sorted(lots.items())
        if count
    ]


def _apportioned(wanted: Mapping[tuple[str, str], Fraction], total: int) -> dict[tuple[str, str], int]:
    """Divide a number of lots: everybody gets the whole ones, the largest remainders get one more."""
    lots = {key: math.floor(item) for key, item in wanted.items()}
    remainders = sorted(wanted, key=lambda key: (lots[key] - wanted[key], key))
    for key in remainders[: total - sum(lots.values())]:
        lots[key] += 1
    return lots


def truncated(value: Fraction) -> Decimal:
    """Return a fraction as a figure, rounded toward zero."""
    return EXACT.scaleb(Decimal(math.trunc(value * 10**FIGURE_PLACES)), -FIGURE_PLACES)


def rounded(value: Fraction) -> Decimal:
    """Return a fraction to the nearest figure of 12 places, to be read by people."""
    return EXACT.scaleb(Decimal(round(value * 10**AMOUNT_PLACES)), -AMOUNT_PLACES)
