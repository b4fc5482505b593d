"""What strategies hold and have earned in a world, added up."""

from decimal import Decimal

from pydantic import Field

from qmtl_sdk.contracts.ledger import HeldPosition
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime

LARGEST = 5
"""The largest positions of a strategy that a summary names, unless more are wanted."""


class PositionSums(Model):
    """Sums over positions at one account, in its currency, exact and at the marks of the ledger.

    `positions` counts those that are held; those that are flat count with what they earned. `gross` is the
    exposure without signs, `net` with them (short is negative). `cash` is what was received less what was
    paid, without the capital. `profit` = realised + unrealised + income - fees = cash + net, and
    `profit_today` is that less what it was at midnight UTC.
    """

    positions: int
    gross: Decimal
    net: Decimal
    cash: Decimal
    realised: Decimal
    unrealised: Decimal
    income: Decimal
    fees: Decimal
    profit: Decimal
    profit_today: Decimal


class AccountSums(PositionSums):
    """What all strategies of a world hold at an account. Simulated and real money are in different ones."""

    account: str


class StrategySums(AccountSums):
    """What a strategy holds at an account, and its largest positions, by their value without a sign."""

    strategy_id: str
    largest: tuple[HeldPosition, ...]


class PositionSummary(Model):
    """`GET /worlds/{id}/positions/summary`: by strategy and account, and by account for the whole world.

    `midnight` is since when `profit_today` counts. `unreadable`: positions that are left out, because what
    the ledger has of them cannot be read.
    """

    world_id: str
    midnight: UtcTime
    strategies: tuple[StrategySums, ...]
    accounts: tuple[AccountSums, ...]
    unreadable: int = Field(0, ge=0)
