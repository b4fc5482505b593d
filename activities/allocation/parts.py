"""What each strategy gets of a netted trade, in whole lots that add up to it exactly.

Strategies that want opposite changes exchange what nets out; the rest is ordered. Unless limits cut the
order, each gets what it wants to within one lot.
"""

from decimal import Decimal
from fractions import Fraction

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
    sign = -1 if trade.gap < 0 else 1
    along = {owner: abs(gap) for owner, gap in wanted.items() if (gap < 0) == (trade.gap < 0)}
    against = {owner: abs(gap) for owner, gap in wanted.items() if owner not in along}
    lot = trade.instrument.lot
    whole = sum(along.values(), Fraction()) if against else abs(trade.gap)
    exchanged = lots_of(whole, lot) - abs(lots_of(trade.gap, lot))
    received = exchanged + abs(trade.lots)
    if received < lots_of(whole, lot):
        share = received * Fraction(lot) / whole
        along = {owner: gap * share for owner, gap in along.items()}
    return {
        **{owner: sign * lots for owner, lots in _apportioned(along, received, lot).items()},
        **{owner: -sign * lots for owner, lots in _apportioned(against, exchanged, lot).items()},
    }


def _wanted(trade: Trade) -> dict[_Owner, Fraction]:
    """Return by how much each strategy's position is to change."""
    wanted: dict[_Owner, Fraction] = {}
    for item in trade.holdings:
        if item.gap:
            owner = (item.world_id, item.strategy_id)
            wanted[owner] = wanted[owner] + item.gap if owner in wanted else item.gap
    return {owner: gap for owner, gap in wanted.items() if gap}


def _apportioned(wanted: dict[_Owner, Fraction], total: int, lot: Decimal) -> dict[_Owner, int]:
    """Divide a number of lots: everybody gets the whole ones, the largest remainders get one more.

    Remainders are compared to 64 bits: those that get one are never small.
    """
    numerator, denominator = lot.as_integer_ratio()
    exact = {
        owner: (gap.numerator * denominator << 64) // (gap.denominator * numerator)
        for owner, gap in wanted.items()
    }
    lots = {owner: bits >> 64 for owner, bits in exact.items()}
    left = total - sum(lots.values())
    if left:
        largest = sorted(exact, key=lambda owner: (-(exact[owner] & _REMAINDER), owner))
        lots.update({owner: lots[owner] + 1 for owner in largest[:left]})
    return lots
