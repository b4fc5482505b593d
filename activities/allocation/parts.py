"""What each strategy gets of a netted trade, in whole lots that add up to it exactly.

Strategies that want opposite changes cross what nets out; the rest is ordered. Unless limits cut the
order, each gets what it wants to within one lot. A position that is no whole number of lots would be turned
from long to short, or back, by the lot in which it ends: less is crossed where that would be needed.
"""

from decimal import Decimal
from fractions import Fraction
from math import ceil

from activities.allocation.netting import Trade, lots_of
from qmtl_sdk.contracts.amounts import EXACT, plain
from qmtl_sdk.contracts.rebalance_plan import DeltaPart

_Owner = tuple[str, str]
_REMAINDER = (1 << 64) - 1


def parts_of(trade: Trade) -> tuple[DeltaPart, ...]:
    """Return what each strategy gets of a trade, sorted by world and strategy."""
    return tuple(
        DeltaPart(
            world_id=world_id,
            strategy_id=strategy_id,
            quantity=plain(EXACT.multiply(Decimal(lots), trade.instrument.lot)),
        )
        for (world_id, strategy_id), lots in sorted(_lots_by_owner(trade).items())
        if lots
    )


def _lots_by_owner(trade: Trade) -> dict[_Owner, int]:
    wanted = _wanted(trade)
    if len(wanted) == 1:
        return dict.fromkeys(wanted, trade.lots)
    sign, lot, ordered = -1 if trade.gap < 0 else 1, trade.instrument.lot, abs(trade.lots)
    along = {owner: abs(gap) for owner, gap in wanted.items() if (gap < 0) == (trade.gap < 0)}
    against = {owner: abs(gap) for owner, gap in wanted.items() if owner not in along}
    whole = sum(along.values(), Fraction()) if against else abs(trade.gap)
    uneven = _uneven(trade)
    along_most, along_sum = _limited(along, whole, sign, uneven)
    against_most, against_sum = _limited(against, whole - abs(trade.gap), -sign, uneven)
    crossed = lots_of(whole, lot) - abs(lots_of(trade.gap, lot))
    room = lots_of(along_sum, lot) - ordered
    if room < 0:  # no room for a crossing, and what is ordered has to be somebody's
        along_most, along_sum = along, whole
    crossed = max(min(crossed, ceil(against_sum / Fraction(lot)), room), 0)
    along_lots = _divided(along_most, along_sum, crossed + ordered, lot)
    against_lots = _divided(against_most, against_sum, crossed, lot)
    return {
        **{owner: sign * lots for owner, lots in along_lots.items()},
        **{owner: -sign * lots for owner, lots in against_lots.items()},
    }


def _wanted(trade: Trade) -> dict[_Owner, Fraction]:
    """Return by how much each strategy's position is to change."""
    wanted: dict[_Owner, Fraction] = {}
    for item in trade.holdings:
        if item.gap:
            owner = (item.world_id, item.strategy_id)
            wanted[owner] = wanted[owner] + item.gap if owner in wanted else item.gap
    return {owner: gap for owner, gap in wanted.items() if gap}


def _uneven(trade: Trade) -> dict[_Owner, tuple[bool, Fraction]]:
    """Return the positions that are no whole number of lots: whether they are short, and their whole lots."""
    held: dict[_Owner, Decimal] = {}
    for item in trade.holdings:
        owner = (item.world_id, item.strategy_id)
        held[owner] = EXACT.add(held[owner], item.quantity) if owner in held else item.quantity
    lot = trade.instrument.lot
    return {
        owner: (quantity < 0, lots_of(abs(Fraction(quantity)), lot) * Fraction(lot))
        for owner, quantity in held.items()
        if EXACT.remainder(quantity, lot)
    }


def _limited(
    wanted: dict[_Owner, Fraction], whole: Fraction, sign: int, uneven: dict[_Owner, tuple[bool, Fraction]]
) -> tuple[dict[_Owner, Fraction], Fraction]:
    """Return what strategies want, and its sum, as far as no lot of it turns a position around."""
    limits = {
        owner: lots
        for owner, (short, lots) in uneven.items()
        if short == (sign > 0) and wanted.get(owner, 0) > lots
    }
    if not limits:
        return wanted, whole
    limited = wanted | limits
    return limited, sum(limited.values(), Fraction())


def _divided(wanted: dict[_Owner, Fraction], whole: Fraction, total: int, lot: Decimal) -> dict[_Owner, int]:
    """Divide a number of lots: everybody gets the whole ones, the largest remainders get one more.

    Where there is less than wanted, everybody gets less in one proportion. Remainders are compared to 64
    bits: those that get one are never small, or the only ones.
    """
    if total < lots_of(whole, lot):
        share = total * Fraction(lot) / whole
        wanted = {owner: gap * share for owner, gap in wanted.items()}
    numerator, denominator = lot.as_integer_ratio()
    exact: dict[_Owner, int] = {}
    for owner, gap in wanted.items():
        bits, rest = divmod(gap.numerator * denominator << 64, gap.denominator * numerator)
        exact[owner] = bits | (rest > 0)  # so that no remainder is taken for none
    lots = {owner: bits >> 64 for owner, bits in exact.items()}
    left = total - sum(lots.values())
    if left:
        largest = sorted(exact, key=lambda owner: (-(exact[owner] & _REMAINDER), owner))
        lots.update({owner: lots[owner] + 1 for owner in largest[:left]})
    return lots
