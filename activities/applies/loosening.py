"""What a change of a world's rules loosens: what it takes back of the safety that the rules in force give.

A pure comparison. A rule whose strictness is not known here counts as loosened by any change. So does a rule
about approvals in either direction: whoever could ask for more approvals than there are people, or for all of
them within a minute, would lock the rules.
"""

import operator
import re
from collections.abc import Callable, Iterator
from decimal import Decimal

from qmtl_sdk.contracts.amounts import ZERO
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.policy import Gates, Policy
from qmtl_sdk.contracts.policy_text import differences
from qmtl_sdk.contracts.position_limits import TotalLimits
from qmtl_sdk.contracts.worlds import WorldSpec

# A gate whose strictness is known: a metric and its bound.
_BOUND = re.compile(r"\s*([A-Za-z_][\w.]*)\s*(>=|>|<=|<)\s*(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*")


# Rules that are compared one by one, and those that are neither strict nor loose. An apply shows and pins its
# data, and is approved with it.
_COMPARED = (
    "data_currency.",
    "decision_ttl",
    "gating_policy.apply.on_rollback",
    "gating_policy.campaign.",
    "gating_policy.dataset_fingerprint",
    "gating_policy.domains.",
    "gating_policy.edges.pre_promotion",
    "gating_policy.required_signals",
    "preset",
    "selection.constraints",
    "selection.gates",
    "selection.hysteresis.demote_after",
    "selection.hysteresis.promote_after",
    "selection.topk",
)


def loosened_policy(before: Policy, after: Policy) -> list[str]:
    """Name what the policy `after` loosens."""
    return list(_policy(before, after))


def loosened_world(before: WorldSpec, after: WorldSpec) -> list[str]:
    """Name what a change of a world's spec loosens."""
    return list(_world(before, after))


def _policy(before: Policy, after: Policy) -> Iterator[str]:
    yield from _gates(before.selection.gates, after.selection.gates)
    old, new = before.gating_policy, after.gating_policy
    if rank_of(after.highest_mode) > rank_of(before.highest_mode):
        yield f"domains.to {new.domains.to}"
    if old.dataset_fingerprint and not new.dataset_fingerprint:
        yield "dataset_fingerprint is pinned no more"
    if not set(old.required_signals) <= set(new.required_signals):
        yield "required_signals"
    if old.apply.on_rollback == "flatten" and new.apply.on_rollback != "flatten":
        yield f"apply.on_rollback {new.apply.on_rollback}"
    if old.edges.pre_promotion.disable_edges_to and not new.edges.pre_promotion.disable_edges_to:
        yield "edges.pre_promotion"
    slow, wanted = before.selection.hysteresis, after.selection.hysteresis
    data, data_after = before.data_currency, after.data_currency
    for name, was, now, lower in (
        ("data_currency.max_lag", data.max_lag, data_after.max_lag, True),
        ("data_currency.min_history", data.min_history, data_after.min_history, False),
        ("decision_ttl", before.decision_ttl, after.decision_ttl, True),
        ("campaign.backtest", old.campaign.backtest, new.campaign.backtest, False),
        ("campaign.dryrun", old.campaign.dryrun, new.campaign.dryrun, False),
        *((f"topk.{name}", was, now, True) for name, was, now in _places(before, after)),
        ("hysteresis.promote_after", slow.promote_after, wanted.promote_after, False),
        ("hysteresis.demote_after", slow.demote_after, wanted.demote_after, True),
        ("constraints.correlation", _pairwise(before), _pairwise(after), True),
        *_exposure(before, after),
    ):
        if _is_looser(was, now, lower):
            yield f"{name} from {_shown(was)} to {_shown(now)}"
    for difference in differences(before, after):
        if not difference.key.startswith(_COMPARED):
            yield f"{difference.key} from {_shown(difference.before)} to {_shown(difference.after)}"


def _world(before: WorldSpec, after: WorldSpec) -> Iterator[str]:
    if after.allow_live and not before.allow_live:
        yield "allow_live"
    if after.data != before.data:
        yield "data"
    if before.on_halt == "cancel" and after.on_halt != "cancel":
        yield f"on_halt {after.on_halt}"
    if after.instruments != before.instruments:
        yield "instruments"
    held, wanted = before.capital, after.capital
    if wanted and (held is None or wanted.amount > held.amount or wanted.currency != held.currency):
        yield f"capital from {held.amount if held else 'none'} to {wanted.amount} {wanted.currency}"
    old, new = before.order_limits, after.order_limits
    breaker, looser = before.circuit_breaker, after.circuit_breaker
    if old.symbols is not None and (new.symbols is None or not set(new.symbols) <= set(old.symbols)):
        yield "order_limits.symbols"
    # A new price lets orders pass that were refused; a lower one, or none, values them lower.
    named = {*old.prices, *new.prices}
    if any(symbol not in old.prices or new.prices.get(symbol, ZERO) < old.prices[symbol] for symbol in named):
        yield "order_limits.prices"
    for name, was, now in (
        ("order_limits.max_quantity", old.max_quantity, new.max_quantity),
        ("order_limits.max_notional", old.max_notional, new.max_notional),
        *_positions("strategy", old.strategy, new.strategy),
        *_positions("world", old.world, new.world),
        ("max_orders_per_minute", breaker.max_orders_per_minute, looser.max_orders_per_minute),
        ("max_refused_per_minute", breaker.max_refused_per_minute, looser.max_refused_per_minute),
    ):
        if _is_looser(was, now, lower=True):
            yield f"{name} from {_shown(was)} to {_shown(now)}"


def _positions(
    name: str, before: TotalLimits, after: TotalLimits
) -> Iterator[tuple[str, Decimal | None, Decimal | None]]:
    """Return the limits on positions, each with its value before and after."""
    for field in type(before).model_fields:
        yield f"order_limits.{name}.{field}", getattr(before, field), getattr(after, field)


def _gates(before: Gates, after: Gates) -> Iterator[str]:
    """Name each gate of `before` that no gate of `after` is as strict as."""
    if before.any_of or after.any_of:
        if before != after and before.count:
            yield "gates"
        return
    for gate in before.all_of:
        if not any(_covers(gate, other) for other in after.all_of):
            yield f"gate {gate}" if isinstance(gate, str) else "a group of gates"


def _covers(gate: "str | Gates", other: "str | Gates") -> bool:
    """Return whether `other` lets nothing through that `gate` stops."""
    if gate == other:
        return True
    if not (isinstance(gate, str) and isinstance(other, str)):
        return False
    one, two = _BOUND.fullmatch(gate), _BOUND.fullmatch(other)
    if one is None or two is None or one[1] != two[1] or one[2] != two[2]:
        return False
    stricter: Callable[[float, float], bool] = operator.ge if one[2].startswith(">") else operator.le
    return stricter(float(two[3]), float(one[3]))


def _exposure(before: Policy, after: Policy) -> Iterator[tuple[str, float | None, float | None, bool]]:
    old, new = before.selection.constraints.exposure, after.selection.constraints.exposure
    yield "exposure.max_leverage", old.max_leverage, new.max_leverage, True
    yield "exposure.sector_cap", old.sector_cap, new.sector_cap, True
    yield "exposure.gross_budget.long", old.gross_budget.long, new.gross_budget.long, True
    yield "exposure.gross_budget.short", old.gross_budget.short, new.gross_budget.short, True


def _is_looser(was: object, now: object, lower: bool) -> bool:
    """Return whether a limit is looser. `lower`: whether a lower value is stricter. None is no limit."""
    if was is None:
        return False
    if now is None:
        return True
    return bool(now > was if lower else now < was)  # type: ignore[operator]  # numbers of one kind


def _places(before: Policy, after: Policy) -> Iterator[tuple[str, int | None, int | None]]:
    """Return the places of top-k, in total and by side."""
    old, new = before.selection.topk, after.selection.topk
    yield "total", old.total if old else None, new.total if new else None
    for side in ("long", "short"):
        was = getattr(old.by_side, side) if old else None
        yield f"by_side.{side}", was, getattr(new.by_side, side) if new else None


def _pairwise(policy: Policy) -> float | None:
    correlation = policy.selection.constraints.correlation
    return correlation.max_pairwise if correlation else None


def _shown(value: object) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float | int) else str(value)
