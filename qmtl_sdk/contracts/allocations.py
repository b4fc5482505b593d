"""Allocations: which share of the whole capital each world has, and each strategy of a world.

A share is a part of the whole capital, also a strategy's own: half of a world with 0.3 is 0.15. Fields call
it `weight`, but it is not the weight of a decision, which is a part of the world's capital.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from decimal import ROUND_DOWN, Context, Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from qmtl_sdk.contracts.amounts import EXACT, Limit, SignedAmount, exact_sum, plain
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model, sort_by
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_WORLDS = 1000
"""Worlds among which the capital is divided."""

MAX_STRATEGIES = 1000
"""Strategies of a world with a share of their own."""

WEIGHT_PLACES = 12
"""Decimal places of a world's share. A strategy's has twice as many: it is a part of that."""

StrategyId = Annotated[PlainLine, Field(min_length=1, max_length=128)]
"""The id of a strategy."""

Share = Annotated[Decimal, Field(ge=0, le=1, decimal_places=WEIGHT_PLACES), AfterValidator(plain)]
"""A world's share of the whole capital, 0 to 1."""

OwnShare = Annotated[Decimal, Field(ge=0, le=1, decimal_places=2 * WEIGHT_PLACES), AfterValidator(plain)]
"""A strategy's own share of the whole capital, 0 to 1."""


class WorldAllocation(Model):
    """A world's share, and those of its strategies that have one of their own."""

    world_id: WorldId
    weight: Share
    strategies: dict[StrategyId, OwnShare] = Field({}, max_length=MAX_STRATEGIES)

    @classmethod
    def of_shares(cls, world_id: str, weight: Decimal, shares: Mapping[str, Decimal]) -> Self:
        """Return the allocation of a world whose strategies have these shares of it."""
        totals = {name: EXACT.multiply(weight, share) for name, share in shares.items()}
        return cls(world_id=world_id, weight=weight, strategies=totals)

    @model_validator(mode="after")
    def _strategies_share_the_world(self) -> Self:
        require_strategies(self.strategies.values(), self.weight, f"the strategies of {self.world_id}")
        return self


Allocations = Annotated[
    tuple[WorldAllocation, ...], Field(max_length=MAX_WORLDS), sort_by(lambda item: item.world_id)
]
"""The allocations of several worlds, sorted by world."""


class AllocationUpdate(Model):
    """`POST /allocations`: the allocations of some worlds; the others keep theirs.

    `etag`: refuse unless the present ones have it.
    """

    allocations: Allocations
    etag: PlainLine = Field("", max_length=128)

    @model_validator(mode="after")
    def _worlds_share_the_capital(self) -> Self:
        require_worlds(self.allocations)
        return self


class AllocationSnapshot(Model):
    """The allocations of all worlds. The etag is a hash of their content, never of the clock.

    `updated_at`: when one was last set; None: none ever was.
    """

    allocations: Allocations
    updated_at: UtcTime | None = None
    etag: str = Field("", max_length=128)

    @model_validator(mode="before")
    @classmethod
    def _has_its_etag(cls, body: Any) -> Any:
        """Set the etag where there is none. (Any: pydantic's own types.)"""
        if isinstance(body, dict) and not body.get("etag") and "allocations" in body:
            update = AllocationUpdate(allocations=body["allocations"])
            return {**body, "etag": allocations_etag(update.allocations)}
        return body

    def is_stale(self, now: datetime, limit: timedelta) -> bool:
        """Whether the allocations are older than a limit, or were never set."""
        return self.updated_at is None or now - self.updated_at > limit

    def require_etag(self, etag: str) -> None:
        """Raise QmtlError (E_ETAG, with the present etag) if another one is expected. Empty: any."""
        if etag and etag != self.etag:
            raise QmtlError(
                "E_ETAG",
                "the allocations have changed since they were read",
                "read them again, and decide on the change once more",
                etag=self.etag,
                given=etag,
            )


class AccountLimits(Model):
    """Limits on the orders of one account. None: no limit.

    `cash` is what positions do not lock: an increase locks its margin, a reduction releases it, and costs are
    paid from it. `max_turnover` limits the sum of the notionals of all orders.
    """

    cash: SignedAmount | None = None
    max_turnover: Limit | None = None


class StrategyChange(Model):
    """A strategy's own share before and after."""

    strategy_id: StrategyId
    before: OwnShare
    after: OwnShare


_StrategyChanges = Annotated[
    tuple[StrategyChange, ...], Field(max_length=MAX_STRATEGIES), sort_by(lambda item: item.strategy_id)
]


class AllocationChange(Model):
    """A world's share before and after, and those of its strategies that get one of their own.

    The positions of other strategies are scaled like the world. `limits` are those of the world's account.
    """

    world_id: WorldId
    before: Share
    after: Share
    strategies: _StrategyChanges = ()
    limits: AccountLimits = AccountLimits()

    @model_validator(mode="after")
    def _strategies_share_the_world(self) -> Self:
        names = [item.strategy_id for item in self.strategies]
        if len(set(names)) < len(names):
            raise ValueError(f"a strategy of {self.world_id} is named twice")
        what = f"the strategies of {self.world_id}"
        require_strategies((item.before for item in self.strategies), self.before, f"{what} before")
        require_strategies((item.after for item in self.strategies), self.after, f"{what} after")
        return self


class WorldShare(Model):
    """A proposed share of a world, and why."""

    world_id: WorldId
    share: Share
    why: str = Field(max_length=300)


ShareMethod = Literal["given", "drift_bands", "equal_risk"]
"""How shares of worlds are proposed."""


class ShareProposal(Model):
    """Proposed shares of worlds. What they leave of the capital stays uninvested."""

    method: ShareMethod
    shares: tuple[WorldShare, ...] = Field(max_length=MAX_WORLDS)


def allocations_etag(allocations: Iterable[WorldAllocation]) -> str:
    """Return the hash of allocations: equal allocations have equal etags, at any time and in any order."""
    ordered = sorted(allocations, key=lambda item: item.world_id)
    return hash_of([item.json_dict() for item in ordered])


def changes_between(
    before: Iterable[WorldAllocation], after: Iterable[WorldAllocation]
) -> tuple[AllocationChange, ...]:
    """Return the change of every world. One that `after` does not name keeps what it has.

    A strategy's first share of its own has 0 before, which is not what it had: a plan refuses it where the
    strategy holds positions (E_ALLOCATION_MISSING).
    """
    old = {item.world_id: item for item in before}
    new = {item.world_id: item for item in after}
    return tuple(_change(old.get(name), new.get(name)) for name in sorted(old.keys() | new.keys()))


def carried_shares(before: Mapping[str, Decimal], change: AllocationChange) -> dict[str, Decimal]:
    """Return the shares that strategies have of their own after a change: others go with their world."""
    if not change.after:
        return {}
    named = {item.strategy_id: item.after for item in change.strategies}
    if not change.before:
        return {**before, **named}
    places = Decimal(1).scaleb(-2 * WEIGHT_PLACES)
    carried = {
        name: _ROUND_DOWN.quantize(_ROUND_DOWN.divide(weight * change.after, change.before), places)
        for name, weight in before.items()
    }
    return {**carried, **named}


_ROUND_DOWN = Context(prec=100, rounding=ROUND_DOWN)


def _change(before: WorldAllocation | None, after: WorldAllocation | None) -> AllocationChange:
    after = after or before
    assert after is not None  # its name comes from one of the two
    before = before or WorldAllocation(world_id=after.world_id, weight=Decimal(0))
    strategies = tuple(
        StrategyChange(strategy_id=name, before=before.strategies.get(name, Decimal(0)), after=weight)
        for name, weight in after.strategies.items()
    )
    return AllocationChange(
        world_id=after.world_id, before=before.weight, after=after.weight, strategies=strategies
    )


def require_worlds(allocations: Iterable[WorldAllocation]) -> None:
    """Raise ValueError where a world is named twice or the shares of all worlds are above 1."""
    items = tuple(allocations)
    if len({item.world_id for item in items}) < len(items):
        raise ValueError("a world is named twice")
    require_sum((item.weight for item in items), Decimal(1), "the worlds")


def require_strategies(weights: Iterable[Decimal], world: Decimal, what: str) -> None:
    """Raise ValueError where strategies have more than their world."""
    try:
        require_sum(weights, world, what)
    except ValueError as error:
        half = EXACT.multiply(world, Decimal("0.5"))
        raise ValueError(
            f"{error} (shares of the whole capital: half of {world} is {plain(half)})"
        ) from error


def require_sum(weights: Iterable[Decimal], limit: Decimal, what: str) -> None:
    """Raise ValueError where shares add up to more than a limit."""
    total = exact_sum(weights)
    if total > limit:
        raise ValueError(f"the shares of {what} add up to {plain(total)}, above {limit}")
