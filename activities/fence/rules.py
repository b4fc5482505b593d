"""What the fence says of an order: pure, of what one transaction sees. Safety rests on this and on nothing that must arrive first.

The checks are asked in this order and the first that objects gives the reason. Each must be found missing by the chaos run when it is taken out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from qmtl_sdk.contracts.domains import Domain, domain_of
from qmtl_sdk.contracts.orders import Order, Refusal


@dataclass
class World:
    """A world's fence row. Times are the store's texts. `orders` and `refused` count within `minute`, where a circuit breaker wants them counted."""

    epoch: int
    state: str
    halted: str
    allow_live: bool
    live_edge: bool
    fresh_until: str
    max_orders: int | None = None
    max_refused: int | None = None
    minute: str = ""
    orders: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Activation:
    active: bool
    mode: str


@dataclass(frozen=True)
class Session:
    world_id: str
    strategy_id: str
    execution_domain: str
    expires_at: str
    ended: bool


@dataclass(frozen=True)
class OrderContext:
    """What a transaction sees of an order's surroundings, at the time `now`."""

    order: Order
    world: World
    activation: Activation | None
    session: Session | None
    now: str


Check = Callable[[OrderContext], bool]


def _wrong_domain(sight: OrderContext) -> bool:
    """Of an active strategy: its stage is the only domain that it may trade in. (Shadow and what is not active have checks of their own.)"""
    order, activation = sight.order.execution_domain, sight.activation
    if order is Domain.SHADOW or activation is None or not activation.active:
        return order is Domain.BACKTEST
    return order not in (Domain.DRYRUN, Domain.LIVE) or domain_of(activation.mode) is not order


def _no_session(sight: OrderContext) -> bool:
    session, order = sight.session, sight.order
    if session is None or session.ended or session.expires_at < sight.now:
        return True
    return (session.world_id, session.strategy_id, session.execution_domain) != (
        order.world_id,
        order.strategy_id,
        order.execution_domain.value,
    )


def _live(sight: OrderContext) -> bool:
    return sight.order.execution_domain is Domain.LIVE


# Read-only: nobody takes a check out in passing, or changes their order.
CHECKS: Mapping[Refusal, Check] = MappingProxyType(
    {
        Refusal.SHADOW: lambda sight: sight.order.execution_domain is Domain.SHADOW,
        Refusal.HALTED: lambda sight: bool(sight.world.halted),
        Refusal.FROZEN: lambda sight: sight.world.state == "frozen",
        Refusal.DRAINING: lambda sight: sight.world.state == "draining",
        Refusal.STALE_EPOCH: lambda sight: sight.order.epoch != sight.world.epoch,
        Refusal.STALE_DECISION: lambda sight: sight.world.fresh_until < sight.now,
        Refusal.NO_SESSION: _no_session,
        Refusal.NOT_ACTIVE: lambda sight: sight.activation is None or not sight.activation.active,
        Refusal.WRONG_DOMAIN: _wrong_domain,
        Refusal.LIVE_NOT_ALLOWED: lambda sight: _live(sight) and not sight.world.allow_live,
        Refusal.EDGE_CLOSED: lambda sight: _live(sight) and not sight.world.live_edge,
        Refusal.CIRCUIT_BREAKER: lambda sight: (
            sight.world.max_orders is not None and sight.world.orders >= sight.world.max_orders
        ),
    }
)


def refusal(sight: OrderContext) -> Refusal | None:
    """Why the order is refused; None where it is accepted."""
    return next((reason for reason, objects in CHECKS.items() if objects(sight)), None)


@dataclass
class BreakerCount:
    """Counts the orders of a minute for the circuit breaker."""

    world: World
    tripped: str = field(default="")

    def count(self, reason: Refusal | None, now: str) -> None:
        world, minute = self.world, now[:16]
        if world.minute != minute:
            world.minute, world.orders, world.refused = minute, 0, 0
        if reason is None:
            world.orders += 1
        else:
            world.refused += 1
        if reason is Refusal.CIRCUIT_BREAKER and not self.tripped:
            self.tripped = f"circuit breaker: more than {world.max_orders} orders within a minute"
        elif world.max_refused is not None and world.refused > world.max_refused and not self.tripped:
            self.tripped = f"circuit breaker: more than {world.max_refused} refused orders within a minute"
