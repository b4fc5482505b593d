"""The rules of the fence: whether an order is accepted, as a pure function of what one transaction reads.

Safety rests on these rules alone, not on messages that must arrive first. They are checked in this order, and
the first that objects gives the reason. The chaos run takes each of them out in turn, and must notice.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType

from qmtl_sdk.contracts.domains import Domain, domain_of
from qmtl_sdk.contracts.orders import Order, Origin
from qmtl_sdk.contracts.refusals import Refusal

OPEN = "open"
FROZEN = "frozen"
DRAINING = "draining"

FLATTEN: Origin = "flatten"
"""The origin of orders that close a position for an operator."""

REBALANCING: Origin = "rebalancing"
"""The origin of orders of a rebalancing: no session sends them, and all other rules hold for them."""


@dataclass
class FenceState:
    """A world's fence row. Times are ISO 8601 texts (UTC).

    `orders` and `refused` count the orders of `minute`, in worlds with a circuit breaker. `symbols` is a JSON
    list, `max_quantity` and `max_notional` are decimals, `position_limits` is JSON; empty: no limit.
    `rebalancing`: the run that has locked the world.
    """

    epoch: int
    state: str
    halted: str
    allow_live: bool
    live_edge: bool
    fresh_until: str
    max_orders: int | None = None
    max_refused: int | None = None
    symbols: str = ""
    max_quantity: str = ""
    max_notional: str = ""
    position_limits: str = ""
    minute: str = ""
    orders: int = 0
    refused: int = 0
    rebalancing: str = ""

    @property
    def has_breaker(self) -> bool:
        """Whether the world has a circuit breaker, which counts orders."""
        return self.max_orders is not None or self.max_refused is not None


@dataclass(frozen=True)
class Activation:
    """Whether a strategy may trade, in which mode, and whether it is halted.

    A halted strategy has an activation, even where it was never judged.
    """

    active: bool
    mode: str
    halted: bool = False


@dataclass(frozen=True)
class Session:
    """A session and its lease, and who may act in it."""

    world_id: str
    strategy_id: str
    execution_domain: str
    expires_at: str
    ended: bool
    actor: str
    secret_hash: str = field(repr=False)
    opened_at: str = ""


@dataclass(frozen=True)
class OrderContext:
    """An order with everything that its transaction has read, at the time `now`.

    `routed`: an order router has worked a moment ago. `known_price`: what the service knows of the symbol's
    price, where a limit of the world needs it.
    """

    order: Order
    fence: FenceState
    activation: Activation | None
    session: Session | None
    now: str
    routed: bool
    known_price: Decimal | None = None


Check = Callable[[OrderContext], bool]


def _wrong_domain(context: OrderContext) -> bool:
    """An active strategy trades in the domain of its stage only.

    Shadow and inactive strategies have their own rules.
    """
    order, activation = context.order.execution_domain, context.activation
    if order is Domain.SHADOW or activation is None or not activation.active:
        return order is Domain.BACKTEST
    return order not in (Domain.DRYRUN, Domain.LIVE) or domain_of(activation.mode) is not order


def _no_session(context: OrderContext) -> bool:
    session, order = context.session, context.order
    if session is None or session.ended or session.expires_at < context.now:
        return True
    return (session.world_id, session.strategy_id, session.execution_domain) != (
        order.world_id,
        order.strategy_id,
        order.execution_domain.value,
    )


def _symbol_limit(context: OrderContext) -> bool:
    symbols = context.fence.symbols
    return bool(symbols) and context.order.symbol not in _symbols(symbols)


@lru_cache(maxsize=256)
def _symbols(symbols: str) -> frozenset[str]:
    return frozenset(json.loads(symbols))


def _quantity_limit(context: OrderContext) -> bool:
    limit = context.fence.max_quantity
    return bool(limit) and context.order.quantity > Decimal(limit)


def _notional_limit(context: OrderContext) -> bool:
    # Its own price is the word of its author.
    own = context.order.reference_price or 0
    limit = context.fence.max_notional
    price = max(own, context.known_price or 0)
    return bool(limit) and (not price or context.order.quantity * price > Decimal(limit))


def _live(context: OrderContext) -> bool:
    return context.order.execution_domain is Domain.LIVE


# Read-only, so that no code can remove a rule or change their order in passing.
CHECKS: Mapping[Refusal, Check] = MappingProxyType(
    {
        Refusal.SHADOW: lambda context: context.order.execution_domain is Domain.SHADOW,
        Refusal.HALTED: lambda context: bool(context.fence.halted),
        Refusal.STRATEGY_HALTED: lambda context: context.activation is not None and context.activation.halted,
        Refusal.FROZEN: lambda context: context.fence.state not in (OPEN, DRAINING),
        Refusal.DRAINING: lambda context: context.fence.state == DRAINING,
        Refusal.STALE_EPOCH: lambda context: context.order.epoch != context.fence.epoch,
        Refusal.STALE_DECISION: lambda context: context.fence.fresh_until < context.now,
        Refusal.NO_SESSION: _no_session,
        Refusal.NOT_ACTIVE: lambda context: context.activation is None or not context.activation.active,
        Refusal.WRONG_DOMAIN: _wrong_domain,
        Refusal.LIVE_NOT_ALLOWED: lambda context: _live(context) and not context.fence.allow_live,
        Refusal.EDGE_CLOSED: lambda context: _live(context) and not context.fence.live_edge,
        Refusal.SYMBOL_LIMIT: _symbol_limit,
        Refusal.QUANTITY_LIMIT: _quantity_limit,
        Refusal.NOTIONAL_LIMIT: _notional_limit,
        # Orders of dryrun wait for the next router instead: nobody's money depends on their time.
        Refusal.NO_ROUTER: lambda context: _live(context) and not context.routed,
        Refusal.CIRCUIT_BREAKER: lambda context: (
            context.fence.max_orders is not None and context.fence.orders >= context.fence.max_orders
        ),
    }
)


# What is checked again before an accepted order is sent. A freeze lets it finish; its session may have ended.
_CHECKED_BEFORE_SENDING = (
    Refusal.HALTED,
    Refusal.STRATEGY_HALTED,
    Refusal.NOT_ACTIVE,
    Refusal.WRONG_DOMAIN,
    Refusal.LIVE_NOT_ALLOWED,
    Refusal.EDGE_CLOSED,
)


def refusal_before_sending(context: OrderContext) -> Refusal | None:
    """Return why an accepted order is cancelled instead of sent; None where it is sent.

    A freeze closes the edge to live for new orders: accepted ones finish. An order of a flatten takes risk
    off, so nothing that closes a world stops it: only its domain must be one that trades.
    """
    if context.order.origin == FLATTEN:
        trades = context.order.execution_domain in (Domain.DRYRUN, Domain.LIVE)
        return None if trades else Refusal.WRONG_DOMAIN
    exempt = None if context.fence.state == OPEN else Refusal.EDGE_CLOSED
    reasons = (reason for reason in _CHECKED_BEFORE_SENDING if reason is not exempt)
    return next((reason for reason in reasons if CHECKS[reason](context)), None)


def refusal(context: OrderContext) -> Refusal | None:
    """Return why an order is refused; None where it is accepted."""
    exempt = Refusal.NO_SESSION if context.order.origin == REBALANCING else None
    return next(
        (reason for reason, objects in CHECKS.items() if reason is not exempt and objects(context)), None
    )


@lru_cache(maxsize=16)
def _minute_after(minute: str) -> str:
    return (datetime.fromisoformat(minute) + timedelta(minutes=1)).isoformat()[:16]


@dataclass
class BreakerCount:
    """Counts the orders of the minute of `now` for the circuit breaker.

    The clocks of two Gateways differ, so the stored minute may be the next one already. Then orders count in
    that minute. A minute that lies further ahead was stored by a wrong clock, and is replaced.
    """

    fence: FenceState
    now: InitVar[str]
    tripped: str = field(default="")

    def __post_init__(self, now: str) -> None:
        minute = now[:16]
        if self.fence.minute == minute or self.fence.minute == _minute_after(minute):
            return
        self.fence.minute = minute
        self.fence.orders = 0
        self.fence.refused = 0

    def count(self, reason: Refusal | None) -> None:
        """Count an order, and set `tripped` to the reason once a limit is exceeded."""
        fence = self.fence
        if reason is None:
            fence.orders += 1
        else:
            fence.refused += 1
        if reason is Refusal.CIRCUIT_BREAKER and not self.tripped:
            self.tripped = f"circuit breaker: more than {fence.max_orders} orders within a minute"
        elif fence.max_refused is not None and fence.refused > fence.max_refused and not self.tripped:
            self.tripped = f"circuit breaker: more than {fence.max_refused} refused orders within a minute"
