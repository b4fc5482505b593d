"""Adds up what strategies hold and have earned, in Decimal and without rounding."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from activities.ledger.exposures import profit_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.ledger import HeldPosition, Position
from qmtl_sdk.contracts.position_summary import AccountSums, StrategySums


def value_of(position: Position) -> Decimal:
    """Return what a position is worth at its mark; short is negative."""
    return EXACT.multiply(position.quantity, position.mark)


def amounts_of(held: HeldPosition, midnight: Position) -> dict[str, Decimal]:
    """Return what a position adds to each amount of `PositionSums`. `midnight`: as it was then."""
    position, value, profit = held.position, value_of(held.position), profit_of(held.position)
    return {
        "gross": value.copy_abs(),
        "net": value,
        "cash": position.cash,
        "realised": position.realised,
        "unrealised": held.unrealised,
        "income": position.income,
        "fees": position.fees,
        "profit": profit,
        "profit_today": EXACT.subtract(profit, profit_of(midnight)),
    }


@dataclass
class RunningSums:
    """The figures of `PositionSums`, to which more are added."""

    positions: int = 0
    amounts: dict[str, Decimal] = field(default_factory=dict)

    def add(self, positions: int, amounts: Mapping[str, Decimal]) -> None:
        """Add a number of positions that are held, and amounts by their names."""
        self.positions += positions
        for name, amount in amounts.items():
            self.amounts[name] = EXACT.add(self.amounts.get(name, ZERO), amount)

    def figures(self) -> dict[str, int | Decimal]:
        """Return the figures by their names."""
        return {"positions": self.positions, **{name: plain(each) for name, each in self.amounts.items()}}


class WorldSums:
    """Adds up positions by strategy and account, and keeps the largest of each."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._sums: dict[tuple[str, str], RunningSums] = {}
        self._heaps: dict[tuple[str, str], list[tuple[Decimal, int, HeldPosition]]] = {}
        self._added = 0

    def add(self, held: HeldPosition, midnight: Position) -> None:
        """Add a position. `midnight`: as it was then."""
        key, is_held = (held.strategy_id, held.account), bool(held.position.quantity)
        amounts = amounts_of(held, midnight)
        self._sums.setdefault(key, RunningSums()).add(int(is_held), amounts)
        heap = self._heaps.setdefault(key, [])
        self._added += 1
        if is_held:
            heapq.heappush(heap, (amounts["gross"], -self._added, held))  # of equal ones, the first is kept
        if len(heap) > self._largest:
            heapq.heappop(heap)

    def strategies(self) -> tuple[StrategySums, ...]:
        """Return the sums by strategy and account, in the order of these names."""
        return tuple(
            StrategySums.model_validate(
                {
                    "strategy_id": key[0],
                    "account": key[1],
                    "largest": tuple(held for _, _, held in sorted(self._heaps[key], reverse=True)),
                    **sums.figures(),
                }
            )
            for key, sums in sorted(self._sums.items())
        )

    def accounts(self) -> tuple[AccountSums, ...]:
        """Return the sums of all strategies by account."""
        found: dict[str, RunningSums] = {}
        for (_, account), sums in self._sums.items():
            found.setdefault(account, RunningSums()).add(sums.positions, sums.amounts)
        return tuple(
            AccountSums.model_validate({"account": account, **sums.figures()})
            for account, sums in sorted(found.items())
        )
