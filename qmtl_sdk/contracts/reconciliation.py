"""Reconciliation: what a broker says of an account, against the ledger and the order log."""

from decimal import Decimal

from pydantic import Field

from qmtl_sdk.contracts.amounts import Figure
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Account
from qmtl_sdk.contracts.instruments import Symbol
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime

MAX_COMPARED = 2000
"""Positions that a reconciliation keeps; those that differ come first."""


class AccountState(Model):
    """What a broker says of the money in an account. None: it does not say."""

    currency: str = Field("", max_length=16)
    cash: Figure | None = None
    equity: Figure | None = None


class ComparedPosition(Model):
    """The position of an account in a symbol: of all worlds in the ledger, and at the broker.

    `since`: from when on it has differed by this much; None where it does not. `traded`: it was traded during
    the look, which then judges nothing. `worlds` are concerned by a difference.
    """

    symbol: Symbol
    ledger: Decimal
    broker: Decimal
    difference: Decimal = Field(description="the broker's position less the ledger's")
    since: UtcTime | None = None
    traded: bool = False
    worlds: tuple[str, ...] = ()


class StrayOrder(Model):
    """An order that is open at the broker, and not in the order log."""

    order_id: str = Field(max_length=128)
    since: UtcTime
    worlds: tuple[str, ...] = ()


class Reconciliation(Model):
    """The newest comparison of a broker's account with ledger and order log.

    `at`: of the newest comparison that succeeded. `compared`: what the broker has books of; nothing where the
    ledger is its only book. `fault`: why a later comparison failed.
    """

    account: Account
    domain: Domain
    at: UtcTime
    compared: tuple[str, ...] = ()
    fault: str = Field("", max_length=300)
    positions: tuple[ComparedPosition, ...] = ()
    left_out: int = Field(0, description="how many more positions there are, which are not listed")
    orders: tuple[StrayOrder, ...] = ()
    fills_recorded: int = Field(0, description="fills that only this comparison has found")
    state: AccountState | None = None

    def of_world(self, world_id: str) -> "Reconciliation":
        """Return what concerns one world."""
        worlds = {"worlds": (world_id,)}
        positions = [item.model_copy(update=worlds) for item in self.positions if world_id in item.worlds]
        orders = [item.model_copy(update=worlds) for item in self.orders if world_id in item.worlds]
        return self.model_copy(update={"positions": tuple(positions), "orders": tuple(orders)})

    @property
    def differences(self) -> int:
        """How many positions and orders differ."""
        return sum(bool(item.difference) for item in self.positions) + len(self.orders)
