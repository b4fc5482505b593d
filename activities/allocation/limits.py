"""Cash and turnover: reductions first, then as much of the increases as the limits allow.

What does not fit is scaled down in one proportion, rounded toward zero to lots, and listed with the reason.
An increase locks margin and pays its cost from cash; a reduction releases margin before. A reduction is never
held back for lack of cash.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from activities.allocation.netting import Trade, parts_of, truncated
from qmtl_sdk.contracts.allocations import AccountLimits
from qmtl_sdk.contracts.amounts import EXACT, plain
from qmtl_sdk.contracts.rebalance_plan import Dropped, DropReason

_Need = Callable[[Trade], Fraction]


@dataclass(frozen=True)
class Budget:
    """What orders may use of an account's cash and turnover. None: no limit."""

    cash: Fraction | None = None
    turnover: Fraction | None = None

    @classmethod
    def of(cls, limits: AccountLimits) -> "Budget":
        """Return the budget that an account has before any order."""
        cash = None if limits.cash is None else Fraction(limits.cash)
        turnover = None if limits.max_turnover is None else Fraction(limits.max_turnover)
        return cls(cash, turnover)

    def fit(self, trades: Iterable[Trade], times: int = 1) -> tuple[list[Trade], list[Dropped]]:
        """Return the trades with what fits of each, in the same order, and what was cut off them.

        `times`: how often each is traded; 2 where it is taken back later.
        """
        fitted = list(trades)
        dropped: list[Dropped] = []
        if self.turnover is not None:
            turnover = self.turnover / times
            reduced = _cut(fitted, _reductions(fitted), _notional, turnover)
            left = turnover - sum(trade.notional for trade in reduced if trade.reduces)
            cut = _cut(reduced, _increases(fitted), _notional, left)
            dropped += _dropped(fitted, cut, "turnover", self.turnover)
            fitted = cut
        if self.cash is not None:
            free = self.cash - sum(trade.cash_need(times) for trade in fitted if trade.reduces)
            cut = _cut(
                fitted, _increases(fitted), lambda trade: max(trade.cash_need(times), Fraction()), free
            )
            dropped += _dropped(fitted, cut, "cash", self.cash)
            fitted = cut
        return fitted, dropped

    def after(self, trades: Iterable[Trade], times: int) -> "Budget":
        """Return what trades leave for others that are executed after them."""
        done = list(trades)
        spent = sum((trade.cash_need(times) for trade in done), Fraction())
        traded = times * sum((trade.notional for trade in done), Fraction())
        return Budget(
            None if self.cash is None else self.cash - spent,
            None if self.turnover is None else self.turnover - traded,
        )


def _reductions(trades: list[Trade]) -> set[int]:
    return {index for index, trade in enumerate(trades) if trade.reduces}


def _increases(trades: list[Trade]) -> set[int]:
    """Return where the others are. One that crosses zero is among them, as a whole: it is executed last."""
    return {index for index, trade in enumerate(trades) if trade.lots and not trade.reduces}


def _notional(trade: Trade) -> Fraction:
    return trade.notional


def _cut(trades: list[Trade], chosen: set[int], need: _Need, available: Fraction) -> list[Trade]:
    """Return the trades, the chosen ones scaled down in one proportion until they need what is available."""
    needs = {index: need(trades[index]) for index in chosen}
    total = sum(needs.values())
    left = max(available, Fraction())
    if total <= left:
        return list(trades)
    share = left / total
    return [
        trade.limited_to(math.trunc(trade.lots * share)) if needs.get(index) else trade
        for index, trade in enumerate(trades)
    ]


def _dropped(before: list[Trade], after: list[Trade], reason: DropReason, limit: Fraction) -> list[Dropped]:
    shown = plain(truncated(limit))
    return [
        _cut_off(whole, part, reason, f"{reason} is limited to {shown}")
        for whole, part in zip(before, after, strict=True)
        if whole.lots != part.lots
    ]


def _cut_off(trade: Trade, part: Trade, reason: DropReason, detail: str) -> Dropped:
    """Return what a trade loses that is cut to `part`; where nothing is left, what strategies exchange."""
    quantity = EXACT.subtract(trade.quantity, part.quantity)
    return Dropped(
        phase=trade.phase,
        world_id=trade.world_id,
        strategy_id=trade.strategy_id,
        venue=trade.instrument.venue,
        symbol=trade.instrument.symbol,
        quantity=quantity,
        notional=EXACT.multiply(quantity, trade.mark),
        parts=() if part.lots else parts_of(part),
        reason=reason,
        detail=detail,
    )
