"""A simulated account: cash and positions, which fills change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from qmtl_sdk.brokerage.orders import SimulatedFill
from qmtl_sdk.contracts.amounts import EXACT


@dataclass(frozen=True, slots=True)
class SimulatedAccount:
    """Cash, and the position in each symbol; exact, whatever was traded.

    `traded`: the notional of all fills. `fees`: what they cost.
    """

    cash: Decimal
    positions: Mapping[str, Decimal] = field(default_factory=dict)
    traded: Decimal = Decimal(0)
    fees: Decimal = Decimal(0)

    def position(self, symbol: str) -> Decimal:
        """Return the position in a symbol; 0 without one."""
        return self.positions.get(symbol, Decimal(0))

    def after(self, fill: SimulatedFill) -> "SimulatedAccount":
        """Return the account after a fill."""
        paid = EXACT.add(EXACT.multiply(fill.signed, fill.price), fill.fee)
        held = EXACT.add(self.position(fill.symbol), fill.signed)
        return SimulatedAccount(
            EXACT.subtract(self.cash, paid),
            {**self.positions, fill.symbol: held},
            EXACT.add(self.traded, fill.notional),
            EXACT.add(self.fees, fill.fee),
        )

    def equity(self, marks: Mapping[str, Decimal]) -> Decimal:
        """Return cash and positions at their marks. Raises KeyError where a held symbol has none."""
        value = self.cash
        for symbol, held in self.positions.items():
            if held:
                value = EXACT.add(value, EXACT.multiply(held, marks[symbol]))
        return value
