"""Requests of rebalancings in few words, and what their orders lead to."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from activities.allocation.planner import plan_rebalancing
from qmtl_sdk.contracts.instruments import Instruments
from qmtl_sdk.contracts.rebalance_plan import Delta, Dropped, RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest

Change = tuple[str, str] | tuple[str, str, Mapping[str, tuple[str, str]]]
Key = tuple[str, str, str, str]


def request(
    worlds: Mapping[str, Change], positions: Iterable[str] = (), **more: Any
) -> MultiWorldRebalanceRequest:
    """Return a request; `worlds`: before and after, and the same of strategies; the lot is 1 by default.

    A position is written as `world/strategy SYMBOL quantity @ mark`, the symbol perhaps as `SYMBOL.VENUE`.
    """
    more.setdefault("instruments", {"lot": "1"})
    return MultiWorldRebalanceRequest.model_validate(
        {
            "worlds": [_change(name, change) for name, change in worlds.items()],
            "positions": [_position(text) for text in positions],
            **more,
        }
    )


def planned(worlds: Mapping[str, Change], positions: Iterable[str] = (), **more: Any) -> RebalancePlan:
    return plan_rebalancing(request(worlds, positions, **more))


def _change(name: str, change: Change) -> dict[str, Any]:
    strategies = change[2] if len(change) == 3 else {}
    return {
        "world_id": name,
        "before": change[0],
        "after": change[1],
        "strategies": [
            {"strategy_id": key, "before": before, "after": after}
            for key, (before, after) in strategies.items()
        ],
    }


def _position(text: str) -> dict[str, Any]:
    owner, instrument, quantity, _, mark = text.split()
    world_id, _, strategy_id = owner.partition("/")
    symbol, _, venue = instrument.partition(".")
    return {
        "world_id": world_id,
        "strategy_id": strategy_id,
        "venue": venue,
        "symbol": symbol,
        "quantity": quantity,
        "mark": mark,
    }


def shown(items: Iterable[Delta | Dropped]) -> list[str]:
    """Write deltas as `world SYMBOL quantity` and what was dropped as `world SYMBOL quantity reason`."""
    lines = []
    for item in items:
        phase = [] if item.phase == "scaling" else [item.phase]
        owner = "/".join(filter(None, (item.world_id, item.strategy_id)))
        instrument = ".".join(filter(None, (item.symbol, item.venue)))
        reason = [item.reason] if isinstance(item, Dropped) else []
        lines.append(" ".join([*phase, *filter(None, [owner]), instrument, f"{item.quantity:f}", *reason]))
    return lines


def scale_of(asked: MultiWorldRebalanceRequest, world_id: str, strategy_id: str) -> Fraction:
    """Return the scale by the words of the rules, computed apart from the planner."""
    world = next(item for item in asked.worlds if item.world_id == world_id)
    own = [item for item in world.strategies if item.strategy_id == strategy_id]
    before, after = (own[0].before, own[0].after) if own else (world.before, world.after)
    if before == 0:
        return Fraction(1) if after > 0 else Fraction(0)
    return Fraction(after) / Fraction(before)


def after_fills(asked: MultiWorldRebalanceRequest, plan: RebalancePlan) -> dict[Key, Decimal]:
    """Return every position once all orders are filled and strategies have crossed what nets out."""
    rules = Instruments(asked.instruments)
    held = {
        (*position.key[:3], rules.symbol(position.venue, position.symbol)): position.quantity
        for position in asked.positions
    }
    reached: defaultdict[Key, Decimal] = defaultdict(Decimal, held)
    for item in (*plan.deltas, *plan.dropped):
        for part in item.parts:
            reached[part.world_id, part.strategy_id, item.venue, item.symbol] += part.quantity
    return dict(reached)
