"""Limits on what is held and on what may be lost.

They are checked with the ledger and open orders, positions at their newest prices, in the currency of the
account. An order that brings a position nearer to zero is never refused by them.
"""

from qmtl_sdk.contracts.amounts import Amount
from qmtl_sdk.contracts.model import Model


class TotalLimits(Model):
    """Limits on all positions together. None: no limit.

    `max_gross_notional`: of long and short positions added up. `max_loss`: of all that was earned and lost,
    fees included. `max_drawdown`: the fall of the profit from its peak.
    """

    max_gross_notional: Amount | None = None
    max_loss: Amount | None = None
    max_drawdown: Amount | None = None


class PositionLimits(TotalLimits):
    """Limits on each strategy: those of all its positions, and of each, in units and as an amount."""

    max_position: Amount | None = None
    max_position_notional: Amount | None = None
