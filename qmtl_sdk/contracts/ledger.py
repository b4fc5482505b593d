"""The ledger: positions and cash of each strategy at each account, in double entry.

An entry changes one position: that of a strategy in a symbol at an account. Its postings name the two sides
of each amount that moves, so that they add up to zero in every commodity.
"""

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, TypeAdapter, model_validator

from qmtl_sdk.contracts.amounts import EXACT, ZERO, Amount, SignedAmount, plain, quotient
from qmtl_sdk.contracts.fills import Account, FillId
from qmtl_sdk.contracts.instruments import Symbol
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime

MONEY = "money"
"""The commodity of cash postings: the currency of the account."""


class EntryKind(StrEnum):
    """What an entry of the ledger stands for."""

    FILL = "fill"
    REVERSAL = "reversal"
    DIVIDEND = "dividend"
    SPLIT = "split"
    FEE = "fee"
    ADJUSTMENT = "adjustment"


class Entry(Model):
    """A change of a position: by `quantity` units (signed) at `price`, with a fee, or by `cash` alone.

    `cash` is what the account received (signed), without the fee. `ref` names it among the entries of its
    account: the venue's id of a fill, or the id that the person who booked it gave. `ratio` is that of a
    split: new units for each old one.
    """

    kind: EntryKind
    ref: Annotated[PlainLine, Field(min_length=1, max_length=250)]
    strategy_id: PlainLine = Field(min_length=1, max_length=128)
    account: Account
    symbol: Symbol
    order_id: str = Field("", max_length=128)
    quantity: Decimal = ZERO
    price: Decimal = ZERO
    fee: Decimal = ZERO
    cash: Decimal = ZERO
    ratio: Decimal | None = None
    reverses: str = Field("", max_length=250, description="the name of the entry that a reversal takes back")
    reason: PlainLine = Field("", max_length=300)
    at: UtcTime | None = Field(None, description="when it happened; None: when it was recorded")


class Position(Model):
    """What a strategy holds of a symbol at an account, and what it has earned with it.

    `cost` is what the units held cost (negative for what was received for units sold short): cost/quantity is
    the average cost. `realised` is the profit of what was closed, without fees; `income` are dividends.
    `cash` is all that was received less all that was paid, so cash = realised + income - fees - cost. `mark`
    is the newest price that the ledger knows: of a fill or an adjustment, divided by later splits.
    `marked_at` is when that was recorded (ISO 8601, UTC): what moves no price leaves it.
    """

    quantity: Decimal = ZERO
    cost: Decimal = ZERO
    realised: Decimal = ZERO
    income: Decimal = ZERO
    fees: Decimal = ZERO
    cash: Decimal = ZERO
    mark: Decimal = ZERO
    marked_at: str = ""

    @property
    def average(self) -> Decimal:
        """The average cost of a unit, rounded to twelve places; 0 without a position."""
        return quotient(self.cost, self.quantity) if self.quantity else ZERO

    @property
    def unrealised(self) -> Decimal:
        """The profit that closing at the mark would realise."""
        return plain(EXACT.subtract(EXACT.multiply(self.quantity, self.mark), self.cost))


class PositionKey(NamedTuple):
    """Whose position it is."""

    strategy_id: str
    account: str
    symbol: str


_KEY = TypeAdapter(tuple[str, str, str])


class HeldPosition(Model):
    """A position with its owner, as of a time."""

    strategy_id: str
    account: str
    symbol: str
    position: Position
    average: Decimal
    unrealised: Decimal
    updated_at: UtcTime


class PositionFilter(Model):
    """Which positions are listed: of one strategy or all, now or as of a time.

    `closed`: those too that are flat, with what they earned. `after`: only those after this one: a JSON list
    of its strategy_id, account and symbol.
    """

    as_of: UtcTime | None = None
    strategy_id: str = Field("", max_length=128)
    closed: bool = False
    after: str = Field("", max_length=600)
    limit: int = Field(1000, ge=1, le=10_000)

    @property
    def after_key(self) -> PositionKey | None:
        """The position after which the list begins; None: at its beginning."""
        return PositionKey(*_KEY.validate_json(self.after)) if self.after else None

    @model_validator(mode="after")
    def _after_is_a_key(self) -> "PositionFilter":
        try:
            self.after_key  # noqa: B018
        except ValueError as error:
            raise ValueError("`after` is a JSON list of a strategy_id, an account and a symbol") from error
        return self


class Posting(Model):
    """One side of an amount that an entry moves. `account` is a name such as `cash:paper`."""

    account: str
    commodity: str
    amount: Decimal


class LedgerLine(Model):
    """An entry as the ledger keeps it, with the position after it, and its postings."""

    seq: int
    at: UtcTime
    entry: Entry
    after: Position
    postings: tuple[Posting, ...]


class Booking(Model):
    """`POST /worlds/{id}/ledger`: an entry that is not the fill of an order, which an operator makes.

    - `dividend`: `amount` in cash, for the position that is held
    - `split`: `ratio` new units for each old one
    - `fee`: `amount` that the account paid
    - `adjustment`: the position changes by `quantity` at `price`, as when a venue shows another position
    - `reversal`: takes the fill `corrects` back, as if it had never been booked; the right one is then
      reported as a fill of its own. A fill is taken back once, whatever the `booking_id`
    """

    booking_id: FillId
    kind: Literal["dividend", "split", "fee", "adjustment", "reversal"]
    strategy_id: PlainLine = Field(min_length=1, max_length=128)
    account: Account
    symbol: Symbol
    amount: SignedAmount | None = None
    ratio: Amount | None = None
    quantity: SignedAmount | None = None
    price: Amount | None = None
    corrects: FillId | None = None
    reason: PlainLine = Field(min_length=1, max_length=300)
    at: UtcTime | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> "Booking":
        needed = _NEEDED[self.kind]
        given = {name for name in ("amount", "ratio", "quantity", "price", "corrects") if getattr(self, name)}
        if given != needed:
            names = " and ".join(sorted(needed))
            raise ValueError(f"a booking of the kind {self.kind} names {names}, and nothing else of these")
        return self


_NEEDED = {
    "dividend": {"amount"},
    "split": {"ratio"},
    "fee": {"amount"},
    "adjustment": {"quantity", "price"},
    "reversal": {"corrects"},
}


class LedgerCheck(Model):
    """What comparing the ledger with the order log found. `differences` names the first ones."""

    world_id: str
    entries: int
    positions: int
    differences: tuple[str, ...] = ()

    @property
    def is_good(self) -> bool:
        """Whether the ledger is what the order log says."""
        return not self.differences
