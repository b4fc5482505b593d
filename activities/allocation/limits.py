"""Cash and turnover: reductions first, then as much of the increases as the limits allow.

What does not fit is scaled down in one proportion, rounded toward zero to lots, and listed with the reason.
An increase locks margin and pays its cost from cash, and what its price on a tick is worse than the mark; a
reduction releases margin before. A reduction is never held back for lack of cash, nor is the part of an order
that closes a position before it turns it around.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from activities.allocation.netting import Trade, lots_of
from activities.allocation.parts import parts_of
from qmtl_sdk.contracts.allocations import AccountLimits
from qmtl_sdk.contracts.amounts import EXACT, exact_sum, plain
from qmtl_sdk.contracts.rebalance_plan import Dropped, DropReason

_NONE = Decimal(0)


@dataclass(frozen=True)
class Budget:
    """What orders may use of an account's cash and turnover. None: no limit."""

    cash: Decimal | None = None
    turnover: Decimal | None = None

    @classmethod
    def of(cls, limits: AccountLimits) -> "Budget":
        """Return the budget that an account has before any order."""
        return cls(limits.cash, limits.max_turnover)

    def fit(self, trades: Iterable[Trade], times: int = 1) -> tuple[list[Trade], list[Dropped]]:
        """Return the trades with what fits of each, in the same order, and what was cut off them.

        `times`: how often each is traded; 2 where it is taken back later.
        """
        fitted = list(trades)
        dropped: list[Dropped] = []
        if self.turnover is not None:
            cut = _fit_turnover(fitted, self.turnover, times)
            dropped += _dropped(fitted, cut, "turnover", self.turnover)
            fitted = cut
        if self.cash is not None:
            cut = _fit_cash(fitted, self.cash, times)
            dropped += _dropped(fitted, cut, "cash", self.cash)
            fitted = cut
        return fitted, dropped

    def beside(self, trades: Iterable[Trade]) -> "Budget":
        """Return what trades leave for others that are executed before them, and taken back after them.

        What reductions release comes too late for those, and counts for later increases only.
        """
        done = [trade for trade in trades if trade.lots]
        cash, turnover = self.cash, self.turnover
        if cash is not None:
            reductions = [trade.cash_need(1) for trade in done if trade.reduces]
            increases = [max(trade.cash_need(1), _NONE) for trade in done if not trade.reduces]
            least = exact_sum(max(need, _NONE) for need in reductions)
            cash = EXACT.subtract(cash, max(least, exact_sum([*reductions, *increases])))
        if turnover is not None:
            turnover = EXACT.subtract(turnover, exact_sum(trade.notional for trade in done))
        return Budget(cash, turnover)


def _fit_turnover(trades: list[Trade], limit: Decimal, times: int) -> list[Trade]:
    reductions = [index for index, trade in enumerate(trades) if trade.reduces]
    reduced = _cut(trades, {index: _turnover(trades[index], times) for index in reductions}, limit)
    used = exact_sum(_turnover(reduced[index], times) for index in reductions)
    needs = {index: _turnover(trades[index], times) for index in _increases(trades)}
    return _cut(reduced, needs, EXACT.subtract(limit, used))


def _fit_cash(trades: list[Trade], limit: Decimal, times: int) -> list[Trade]:
    used = exact_sum(trade.cash_need(times) for trade in trades if trade.reduces)
    closing = {index: _closing(trades[index]) for index in _increases(trades)}
    # What a closing releases is its own order's alone: others may be executed before.
    first = {index: _taken(part, times) for index, part in closing.items()}
    beyond = {index: EXACT.subtract(_taken(trades[index], times), need) for index, need in first.items()}
    left = EXACT.subtract(limit, exact_sum([used, *first.values()]))
    return _cut(trades, beyond, left, {index: part.lots for index, part in closing.items()})


def _turnover(trade: Trade, times: int) -> Decimal:
    return EXACT.multiply(Decimal(times), trade.notional)


def _taken(trade: Trade, times: int) -> Decimal:
    return max(trade.cash_need(times), _NONE)


def _increases(trades: list[Trade]) -> set[int]:
    """Return where the increases are. A trade that crosses zero is one, as a whole: it is executed last."""
    return {index for index, trade in enumerate(trades) if trade.lots and not trade.reduces}


def _closing(trade: Trade) -> Trade:
    """Return the part of an increase that crosses zero until there, in whole lots; none of another one."""
    lots = lots_of(-Fraction(trade.position), trade.instrument.lot)
    return trade.limited_to(lots if lots * trade.lots > 0 else 0)


def _cut(
    trades: list[Trade],
    needs: Mapping[int, Decimal],
    available: Decimal,
    least: Mapping[int, int] | None = None,
) -> list[Trade]:
    """Return the trades, those with needs scaled down in one proportion until they need what is available.

    `least`: lots of them that are kept in any case, and are not in their needs.
    """
    total = exact_sum(needs.values())
    left = max(available, _NONE)
    if total <= left:
        return list(trades)
    share, kept = Fraction(left) / Fraction(total), least or {}
    cut = list(trades)
    for index, need in needs.items():
        if need:
            lots = kept.get(index, 0)
            cut[index] = trades[index].limited_to(lots + math.trunc((trades[index].lots - lots) * share))
    return cut


def _dropped(before: list[Trade], after: list[Trade], reason: DropReason, limit: Decimal) -> list[Dropped]:
    detail = f"{reason} is limited to {plain(limit):f}"
    return [
        _cut_off(whole, part, reason, detail)
        for whole, part in zip(before, after, strict=True)
        if whole.lots != part.lots
    ]


def _cut_off(trade: Trade, part: Trade, reason: DropReason, detail: str) -> Dropped:
    """Return what a trade loses that is cut to `part`; where nothing is left, what strategies cross."""
    quantity = plain(EXACT.subtract(trade.quantity, part.quantity))
    return Dropped(
        phase=trade.phase,
        world_id=trade.world_id,
        strategy_id=trade.strategy_id,
        venue=trade.instrument.venue,
        symbol=trade.instrument.symbol,
        quantity=quantity,
        notional=plain(EXACT.multiply(quantity, trade.mark)),
        parts=() if part.lots else parts_of(part),
        reason=reason,
        detail=detail,
    )
