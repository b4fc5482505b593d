"""The trades of a plan: by how much each strategy's position changes, as a pure function.

A plan nets the changes of several strategies. What nets out they cross at the mark, by entries of the
ledger; the rest is ordered for the strategies whose changes have the sign of the order. So the account trades
what the plan says, and each strategy gets its part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from activities.allocation.orders import part_order_id
from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum, negated, plain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instruments, TimeInForce
from qmtl_sdk.contracts.rebalance_plan import Delta, Dropped, RebalancePlan, reduces
from qmtl_sdk.contracts.rebalance_runs import RebalanceTrade
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest, PositionSlice

Step = Literal["reductions", "increases"]
"""When a trade is ordered. Reductions come first: they release cash and margin."""

Place = tuple[str, str, str, str]
"""World, strategy, account and symbol."""

_Owner = tuple[str, str]


@dataclass(frozen=True)
class PlannedTrade:
    """A trade as it is carried out. Quantities are signed; `held`: the position before it."""

    world_id: str
    strategy_id: str
    account: str
    symbol: str
    quantity: Decimal
    crossed: Decimal
    held: Decimal
    mark: Decimal
    price: Decimal
    time_in_force: TimeInForce
    reduce_only: bool
    order_id: str

    @property
    def place(self) -> Place:
        """Whose position it changes."""
        return self.world_id, self.strategy_id, self.account, self.symbol

    @property
    def step(self) -> Step:
        """When it is ordered."""
        return "reductions" if self.reduces else "increases"

    @property
    def reduces(self) -> bool:
        """Whether the order brings the position nearer to zero without crossing it."""
        return reduces(EXACT.add(self.held, self.crossed), self.quantity)

    def shown(self) -> RebalanceTrade:
        """Return the trade as people see it."""
        return RebalanceTrade(
            world_id=self.world_id,
            strategy_id=self.strategy_id,
            account=self.account,
            symbol=self.symbol,
            quantity=self.quantity,
            crossed=self.crossed,
            mark=self.mark,
            reduces=self.reduces,
            order_id=self.order_id,
        )


def require_executable(request: MultiWorldRebalanceRequest) -> None:
    """Raise QmtlError (E_REBALANCE_MODE) for a plan that is only shown."""
    why = ""
    if request.mode != "scaling":
        why = f"the mode {request.mode} trades an instrument that belongs to no strategy"
    elif request.scope == "global":
        why = "the scope global nets worlds in one account, and each world has a ledger of its own"
    if why:
        raise QmtlError(
            "E_REBALANCE_MODE",
            f"such a plan is shown and not carried out: {why}",
            "use the mode scaling with the scope world or strategy",
            mode=request.mode,
            scope=request.scope,
        )


def trades_of(plan: RebalancePlan, request: MultiWorldRebalanceRequest, run_id: str) -> list[PlannedTrade]:
    """Return the trades of a plan, in the order of execution."""
    instruments = Instruments(request.instruments)
    held = {
        (item.world_id, item.strategy_id, item.venue, instruments.symbol(item.venue, item.symbol)): item
        for item in request.positions
    }
    changes: list[Delta | Dropped] = [*plan.deltas, *plan.dropped]
    trades = [
        _trade(change, held[(*owner, change.venue, change.symbol)], run_id, quantity, crossed)
        for change in changes
        for owner, quantity, crossed in _divided(change)
    ]
    return sorted(trades, key=lambda trade: trade.step, reverse=True)


def _trade(
    change: Delta | Dropped, held: PositionSlice, run_id: str, quantity: Decimal, crossed: Decimal
) -> PlannedTrade:
    place = (held.world_id, held.strategy_id, held.venue, held.symbol)  # its own name, not an alias of it
    return PlannedTrade(
        *place,
        quantity=quantity,
        crossed=crossed,
        held=held.quantity,
        mark=held.mark,
        price=change.reference_price if isinstance(change, Delta) else held.mark,
        time_in_force=change.time_in_force if isinstance(change, Delta) else "GTC",
        reduce_only=isinstance(change, Delta) and change.reduce_only,
        order_id=part_order_id(run_id, place, quantity) if quantity else "",
    )


def _divided(change: Delta | Dropped) -> Iterator[tuple[_Owner, Decimal, Decimal]]:
    """Yield what is ordered for each strategy of a change, and what it gets of the others (both signed).

    The parts add up to what is ordered. Who crosses with whom does not matter: all have the same price.
    """
    parts = {(part.world_id, part.strategy_id): part.quantity for part in change.parts}
    ordered = exact_sum(parts.values())
    against = _with_sign(parts, negative=ordered > 0 or (ordered == 0))
    along = {owner: quantity for owner, quantity in parts.items() if owner not in against}
    left = exact_sum(against.values()).copy_abs()
    yield from ((owner, ZERO, quantity) for owner, quantity in sorted(against.items()))
    for owner, quantity in sorted(along.items()):
        crossed = min(quantity.copy_abs(), left)
        left = EXACT.subtract(left, crossed)
        signed = crossed if quantity > 0 else negated(crossed)
        yield owner, plain(EXACT.subtract(quantity, signed)), plain(signed)


def _with_sign(parts: dict[_Owner, Decimal], negative: bool) -> dict[_Owner, Decimal]:
    return {owner: quantity for owner, quantity in parts.items() if (quantity < 0) == negative}
