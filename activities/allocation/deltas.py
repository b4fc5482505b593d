"""Trades as a plan lists them: deltas in the order of execution, and what is not ordered with the reason."""

from collections.abc import Iterable
from decimal import ROUND_UP, Context, Decimal
from fractions import Fraction

from activities.allocation.netting import Trade, truncated
from activities.allocation.parts import parts_of
from qmtl_sdk.contracts.amounts import AMOUNT_PLACES, EXACT, plain
from qmtl_sdk.contracts.rebalance_plan import Delta, Dropped, DropReason, Phase

_COST_STEP = Decimal(1).scaleb(-AMOUNT_PLACES)
_ROUND_UP = Context(prec=EXACT.prec, rounding=ROUND_UP)

PHASES: tuple[Phase, ...] = ("overlay", "scaling", "unwind")
"""The phases of a plan in the order of execution."""


def listed(
    trades: Iterable[Trade], cut: Iterable[Dropped] = ()
) -> tuple[tuple[Delta, ...], tuple[Dropped, ...]]:
    """Return the deltas of trades in the order of execution, and everything that is not ordered.

    `cut` is what limits cut off. In a phase, reductions come first: they release cash and margin.
    """
    deltas, dropped = [], list(cut)
    cut_off = {(item.phase, item.world_id, item.strategy_id, item.venue, item.symbol) for item in dropped}
    for trade in trades:
        instrument = trade.instrument
        key = (trade.phase, trade.world_id, trade.strategy_id, instrument.venue, instrument.symbol)
        if trade.lots:
            deltas.append(_delta(trade))
        elif trade.drop_reason and key not in cut_off:
            dropped.append(_not_ordered(trade, trade.drop_reason))
    return tuple(sorted(deltas, key=_execution_order)), tuple(sorted(dropped, key=_drop_order))


def _execution_order(delta: Delta) -> tuple[int, bool, str, str, str, str]:
    place = (delta.world_id, delta.strategy_id, delta.venue, delta.symbol)
    return (PHASES.index(delta.phase), not delta.reduces, *place)


def _drop_order(item: Dropped) -> tuple[int, str, str, str, str, str]:
    place = (item.world_id, item.strategy_id, item.venue, item.symbol)
    return (PHASES.index(item.phase), *place, item.reason)


def _delta(trade: Trade) -> Delta:
    instrument, quantity = trade.instrument, plain(trade.quantity)
    return Delta(
        phase=trade.phase,
        world_id=trade.world_id,
        strategy_id=trade.strategy_id,
        venue=instrument.venue,
        symbol=instrument.symbol,
        quantity=quantity,
        notional=plain(EXACT.multiply(quantity, trade.mark)),
        parts=parts_of(trade),
        mark=trade.mark,
        from_quantity=plain(trade.position),
        to_quantity=plain(trade.after),
        target_quantity=plain(EXACT.add(trade.position, truncated(trade.gap))),
        cost=_rounded_up(trade.cost),
        reference_price=trade.reference_price,
        time_in_force=instrument.time_in_force,
        reduce_only=instrument.supports_reduce_only and trade.reduces,
    )


def _not_ordered(trade: Trade, reason: DropReason) -> Dropped:
    instrument = trade.instrument
    details = {
        "netted": "opposite changes add up to none",
        "below_lot": f"less than the lot of {instrument.lot}",
        "below_min_notional": f"its notional is below {instrument.min_trade_notional}",
    }
    return Dropped(
        phase=trade.phase,
        world_id=trade.world_id,
        strategy_id=trade.strategy_id,
        venue=instrument.venue,
        symbol=instrument.symbol,
        quantity=truncated(trade.gap),
        notional=truncated(trade.gap * Fraction(trade.mark)),
        parts=parts_of(trade),
        reason=reason,
        detail=details[reason],
    )


def _rounded_up(cost: Decimal) -> Decimal:
    return plain(cost.quantize(_COST_STEP, context=_ROUND_UP))
