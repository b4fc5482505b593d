"""The weights with which strategies trade: their decision's, times what rebalancings have made of it.

Scales are exact fractions.

A world that goes from a share of 0.3 to 0.2 trades with two thirds of its capital from then on, and back at
0.3 with all of it: 2/3 · 3/2 = 1. A share of 0 stops it; another one after that counts against the last share
above 0.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from pydantic import TypeAdapter
from sqlalchemy import Connection, select

from activities.storage.keys import has_key
from activities.storage.tables import ActivationRow, AllocationRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.allocations import AllocationChange
from qmtl_sdk.contracts.amounts import AMOUNT_PLACES, EXACT, plain
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.model import Model

_activation = table_of(ActivationRow)
_allocation = table_of(AllocationRow)

# A fraction with a larger denominator is rounded to the nearest one with this: weights have 24 places.
_LARGEST_DENOMINATOR = 10**24


class Scale(Model):
    """One scale: a fraction such as `2/3`. `stopped`: the share is 0 now, and was `last` before."""

    fraction: str = "1"
    stopped: bool = False
    last: str = ""

    @property
    def value(self) -> Fraction:
        """The scale in effect."""
        return Fraction(0) if self.stopped else Fraction(self.fraction)

    def changed(self, before: Decimal, after: Decimal) -> "Scale":
        """Return the scale after a change of its own share: 0 stops it, anything above 0 starts it again."""
        if not after:
            return Scale(fraction=self.fraction, stopped=True, last=str(before) if before else self.last)
        if self.stopped and self.last:
            before = Decimal(self.last)
        return Scale(fraction=self._times(before, after))

    def carried(self, before: Decimal, after: Decimal) -> "Scale":
        """Return the scale of a strategy after a change of its world's share: it stays stopped."""
        return Scale(fraction=self._times(before, after), stopped=self.stopped, last=self.last)

    def _times(self, before: Decimal, after: Decimal) -> str:
        if not before or not after:
            return self.fraction
        product = Fraction(self.fraction) * Fraction(after) / Fraction(before)
        return str(product.limit_denominator(_LARGEST_DENOMINATOR))


class WorldScales(Model):
    """The scale of a world, and those of its strategies that have one of their own."""

    world: Scale = Scale()
    strategies: dict[str, Scale] = {}

    @classmethod
    def stored(cls, scales: str) -> "WorldScales":
        """Read the scales of a row of shares; empty where no rebalancing has changed them."""
        return cls.model_validate_json(scales) if scales else cls()

    def of(self, strategy_id: str) -> Fraction:
        """Return the scale of a strategy; 0 where its world is stopped."""
        return self.strategies.get(strategy_id, self.world).value if not self.world.stopped else Fraction(0)

    @property
    def text(self) -> str:
        """The scale of the world for people; empty where no rebalancing has changed it."""
        if self.world.stopped:
            return "nothing: a rebalancing has taken its share"
        return "" if self.world.value == 1 else f"times {self.world.fraction}, by rebalancings"

    def changed(self, change: AllocationChange) -> "WorldScales":
        """Return the scales after a rebalancing."""
        own = {name: scale.carried(change.before, change.after) for name, scale in self.strategies.items()}
        for item in change.strategies:
            before = self.strategies.get(item.strategy_id, self.world)
            own[item.strategy_id] = before.changed(item.before, item.after)
        return WorldScales(world=self.world.changed(change.before, change.after), strategies=own)


class PastScale(Model):
    """The scale that a world had until a time (ISO 8601, UTC)."""

    until: str
    fraction: str


_PAST = TypeAdapter(tuple[PastScale, ...])

# Past scales of a world that are kept.
_KEPT = 400


def with_past(past: str, until: str, scale: Scale) -> str:
    """Return the past scales of a world (JSON), oldest first, with one more."""
    found = (*_PAST.validate_json(past), PastScale(until=until, fraction=str(scale.value)))
    return _PAST.dump_json(found[-_KEPT:]).decode()


def scale_at(past: str, present: Scale, at: str) -> Fraction:
    """Return the scale that a world had at a time; before all that is known, the oldest one."""
    for item in _PAST.validate_json(past):
        if item.until > at:
            return Fraction(item.fraction)
    return present.value


def scales_of(connection: Connection, world_ids: Iterable[str]) -> Mapping[str, WorldScales]:
    """Read the scales of worlds. Those that no rebalancing has changed are left out."""
    query = select(_allocation.c.world_id, _allocation.c.scales).where(
        _allocation.c.world_id.in_(sorted(world_ids)), _allocation.c.scales != ""
    )
    return {row.world_id: WorldScales.stored(row.scales) for row in connection.execute(query)}


def scaled(weight: Decimal, scale: Fraction) -> Decimal:
    """Return a weight times a scale, rounded to twice the places of an amount."""
    if scale == 1:
        return weight
    found = Fraction(weight) * scale
    return plain(EXACT.scaleb(Decimal(round(found * 10 ** (2 * AMOUNT_PLACES))), -2 * AMOUNT_PLACES))


def weights_of(
    connection: Connection, strategies: Iterable[tuple[str, str]]
) -> Mapping[tuple[str, str], Decimal]:
    """Read the weights with which strategies trade: those of their activations, as rebalancings scaled them.

    Those without an activation are left out.
    """
    wanted = sorted(strategies)
    these = has_key(_activation, ("world_id", "strategy_id"), wanted)
    scales = scales_of(connection, {world_id for world_id, _ in wanted})
    return {
        (row.world_id, row.strategy_id): scaled(
            _weight(row.body), scales.get(row.world_id, WorldScales()).of(row.strategy_id)
        )
        for row in connection.execute(
            select(_activation.c.world_id, _activation.c.strategy_id, _activation.c.body).where(these)
        )
    }


@lru_cache(maxsize=4096)
def _weight(body: str) -> Decimal:
    return plain(Decimal(repr(ActivationEnvelope.model_validate_json(body).weight)))
