"""The plan of a rebalancing, and the orders that are made from it.

One model serves HTTP, workflow and command. A plan says everything that its orders need, so that a stored
plan can be executed.
"""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qmtl_sdk.contracts.allocations import MAX_STRATEGIES, MAX_WORLDS, Share, StrategyId
from qmtl_sdk.contracts.amounts import Amount, Figure, exact_sum
from qmtl_sdk.contracts.applies import RunId
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import TimeInForce
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.rebalancing import MAX_POSITIONS, RebalanceIntent, RebalanceMode, RebalanceScope
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_DELTAS = 2 * MAX_POSITIONS
"""Deltas of a plan, or of a world in it."""

MAX_METRICS = 200
"""Metrics of a world or strategy."""

OVERLAY = "overlay"
"""The strategy to which the positions of a world's overlay belong."""

Phase = Literal["overlay", "scaling", "unwind"]
"""When a delta is executed. `unwind` takes the overlay of a hybrid plan back, as the positions follow."""

DropReason = Literal["netted", "below_lot", "below_min_notional", "turnover", "cash"]
"""Why a change is not ordered, or not all of it."""

# Of what the planner writes: its request has checked the names, and a plan has very many.
_World = Annotated[str, Field(max_length=64)]
_Strategy = Annotated[str, Field(max_length=128)]
_Name = Annotated[str, Field(max_length=64)]
_Figures = dict[Annotated[PlainLine, Field(max_length=128)], float | None]


class DeltaPart(Model):
    """What a strategy gets of a netted change. Strategies cross opposite parts at the mark.

    What they cross turns no position from long to short, or back.
    """

    world_id: _World
    strategy_id: _Strategy
    quantity: Figure


_Parts = Annotated[tuple[DeltaPart, ...], Field(max_length=MAX_POSITIONS)]


class InstrumentChange(Model):
    """The change of an instrument, in a world, a strategy or all worlds (ids that do not apply are empty).

    `quantity` and `notional` are signed. `parts` are whole lots that add up to what is ordered, exactly.
    """

    phase: Phase = "scaling"
    world_id: _World = ""
    strategy_id: _Strategy = ""
    venue: _Name
    symbol: _Name
    quantity: Figure
    notional: Figure
    parts: _Parts = ()


class Delta(InstrumentChange):
    """A change that is ordered.

    `target_quantity` is what the change aims at, before rounding to lots and before limits. `notional` is
    signed, `cost` is an estimate; both are in the currency of the mark.
    """

    mark: Amount
    from_quantity: Figure
    to_quantity: Figure
    target_quantity: Figure
    cost: Figure
    reference_price: Amount
    time_in_force: TimeInForce = "GTC"
    reduce_only: bool = False

    @property
    def reduces(self) -> bool:
        """Whether the position comes nearer to zero without crossing it."""
        return reduces(self.from_quantity, self.quantity)


class Dropped(InstrumentChange):
    """A change, or a part of it, that is not ordered, and why."""

    reason: DropReason
    detail: str = Field(max_length=300)


_Deltas = Annotated[tuple[Delta, ...], Field(max_length=MAX_DELTAS)]
_DroppedChanges = Annotated[tuple[Dropped, ...], Field(max_length=MAX_DELTAS)]


class WorldPlan(Model):
    """The plan of one world, in the order of execution. Scales are rounded here, to be read by people."""

    world_id: WorldId
    before: Share
    after: Share
    scale: Figure
    scale_by_strategy: dict[StrategyId, Figure] = Field({}, max_length=MAX_STRATEGIES)
    deltas: _Deltas = ()
    dropped: _DroppedChanges = ()


class EvidenceMetrics(Model):
    """What the service has measured of a world (`strategy_id` empty) or of a strategy in it."""

    world_id: WorldId
    strategy_id: StrategyId | Literal[""] = ""
    metrics: _Figures = Field(max_length=MAX_METRICS)


class AlphaMetricsEnvelope(Model):
    """The measured performance of worlds and strategies, as the newest evidence has it."""

    per_world: dict[WorldId, _Figures] = Field({}, max_length=MAX_WORLDS)
    per_strategy: dict[WorldId, dict[StrategyId, _Figures]] = Field({}, max_length=MAX_WORLDS)


class RebalancePlan(Model):
    """What a rebalancing does: the plan of each world, and the changes netted over all worlds.

    Orders come from one of the two, as `scope` says. `etag` is the hash of what the plan was made from.
    """

    schema_version: Literal[1, 2]
    run_id: RunId | None = None
    rebalance_intent: RebalanceIntent | None = None
    mode: RebalanceMode
    scope: RebalanceScope
    as_of: UtcTime | None = None
    etag: str = Field(max_length=128)
    per_world: dict[WorldId, WorldPlan] = Field(max_length=MAX_WORLDS)
    global_deltas: _Deltas = ()
    global_dropped: _DroppedChanges = ()
    alpha_metrics: AlphaMetricsEnvelope | None = None

    @property
    def content_hash(self) -> str:
        """The hash of the whole plan as approvers see it."""
        return hash_of(self.json_dict())

    @property
    def deltas(self) -> tuple[Delta, ...]:
        """The deltas that are ordered: those of one scope, never of two."""
        if self.scope == "global":
            return self.global_deltas
        return tuple(delta for world in self.per_world.values() for delta in world.deltas)

    @property
    def dropped(self) -> tuple[Dropped, ...]:
        """What is not ordered in the scope of the plan."""
        if self.scope == "global":
            return self.global_dropped
        return tuple(item for world in self.per_world.values() for item in world.dropped)

    @property
    def turnover(self) -> Decimal:
        """The sum of the notionals of what is ordered."""
        return exact_sum(delta.notional.copy_abs() for delta in self.deltas)

    def require_etag(self, etag: str) -> None:
        """Raise QmtlError (E_ETAG, with the present etag) if the plan is to be made from something else."""
        if etag != self.etag:
            raise QmtlError(
                "E_ETAG",
                "allocations, positions or rules have changed since the plan was made",
                "plan again and have the new plan approved",
                etag=self.etag,
                given=etag,
            )


class RebalanceOrder(Model):
    """An order of a rebalancing. A repeated request has the same `client_order_id`, so it is sent once."""

    client_order_id: str = Field(max_length=128)
    scope: RebalanceScope
    phase: Phase
    world_id: _World
    strategy_id: _Strategy
    venue: _Name
    symbol: _Name
    side: Literal["buy", "sell"]
    quantity: Amount
    reference_price: Amount
    time_in_force: TimeInForce
    reduce_only: bool
    parts: _Parts = ()


class RebalanceOrders(Model):
    """The orders of one submission: all of one scope."""

    orders: tuple[RebalanceOrder, ...] = Field(max_length=MAX_DELTAS)

    @model_validator(mode="after")
    def _is_of_one_scope(self) -> Self:
        scopes = sorted({order.scope for order in self.orders})
        if len(scopes) > 1:
            raise ValueError(f"orders of the scopes {' and '.join(scopes)} would trade one plan twice")
        if len({order.client_order_id for order in self.orders}) < len(self.orders):
            raise ValueError("two orders have the same client_order_id")
        return self


def reduces(position: Decimal, quantity: Decimal) -> bool:
    """Whether a change of a position brings it nearer to zero without crossing it."""
    opposite = (position > 0 > quantity) or (position < 0 < quantity)
    return opposite and quantity.copy_abs() <= position.copy_abs()
