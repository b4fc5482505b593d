"""The plan of a rebalancing, as a pure function of its request: no clock, no store, no float.

1. Every position gets the change that its scale asks for (`scaling`).
2. Changes are netted for each instrument in the plan's scope, and rounded to lots (`netting`); with an
   overlay, their sum is traded in one instrument for each world (`overlay`).
3. Cash and turnover cut what does not fit: of each world's account, then of all together (`limits`). An
   overlay that stands in for orders gets what these leave, and is never larger than they are.
4. The changes of all worlds are netted once more, for a shared account (`shared_account`).
5. Deltas are listed in the order of execution, and what was dropped with its reason (`deltas`).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from activities.allocation.deltas import listed
from activities.allocation.limits import Budget
from activities.allocation.netting import Holding, Trade, net, rounded
from activities.allocation.overlay import OverlayPlanner, taken_back
from activities.allocation.scaling import Marks, Scales, marks_of, scaled_holdings
from activities.allocation.shared_account import SharedAccount, require_enabled
from qmtl_sdk.contracts.allocations import AllocationChange
from qmtl_sdk.contracts.instruments import Instruments
from qmtl_sdk.contracts.rebalance_plan import (
    AlphaMetricsEnvelope,
    Dropped,
    EvidenceMetrics,
    RebalancePlan,
    WorldPlan,
)
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest


def plan_rebalancing(
    request: MultiWorldRebalanceRequest, evidence: Iterable[EvidenceMetrics] = ()
) -> RebalancePlan:
    """Return the plan of a request; with schema 2, with the metrics of the evidence.

    Raises QmtlError: E_ALLOCATION_MISSING, E_INSTRUMENT_UNKNOWN, E_MARK_CONFLICT, E_OVERLAY,
    E_QUANTITY_RANGE, E_SHARED_ACCOUNT_DISABLED, E_SHARED_ACCOUNT_POLICY.
    """
    shared = require_enabled(request.shared_account) if request.scope == "global" else None
    instruments = Instruments(request.instruments)
    holdings = tuple(scaled_holdings(request, instruments))
    marks = marks_of(request, instruments)
    worlds, together = _trades(request, instruments, holdings, marks)
    if shared is not None:
        account = SharedAccount(holdings, marks)
        ordered = [trade for trade in together.trades if trade.lots]
        for _, trades in groupby(ordered, key=lambda trade: trade.phase):
            for trade in trades:
                account.fill(trade)
            account.require_within(shared)
        account.require_within(shared)  # also where nothing is ordered
    global_deltas, global_dropped = listed(together.trades, together.cut)
    return RebalancePlan(
        schema_version=request.schema_version,
        run_id=request.run_id,
        rebalance_intent=request.rebalance_intent,
        mode=request.mode,
        scope=request.scope,
        as_of=request.as_of,
        etag=request.etag,
        per_world=_world_plans(request, worlds),
        global_deltas=global_deltas,
        global_dropped=global_dropped,
        alpha_metrics=_alpha_metrics(request, evidence) if request.schema_version == 2 else None,
    )


@dataclass(frozen=True)
class _Fitted:
    """Trades as far as limits allow them, and what the limits cut off."""

    trades: tuple[Trade, ...] = ()
    cut: tuple[Dropped, ...] = ()

    def __add__(self, other: "_Fitted") -> "_Fitted":
        return _Fitted(self.trades + other.trades, self.cut + other.cut)


class _Budgets:
    """The budget of each world, and that of all together."""

    def __init__(self, worlds: dict[str, Budget], together: Budget) -> None:
        self._worlds = worlds
        self._together = together

    @classmethod
    def of(cls, request: MultiWorldRebalanceRequest) -> "_Budgets":
        worlds = {change.world_id: Budget.of(change.limits) for change in request.worlds}
        return cls(worlds, Budget.of(request.limits))

    def fit_worlds(self, trades: Iterable[Trade], times: int = 1) -> _Fitted:
        """Return what fits the budget of each trade's world, and then that of all together.

        `times`: how often each is traded.
        """
        fitted, cut = self._fit_each(trades, times)
        together, dropped = self._together.fit(fitted, times)
        # Reductions that were cut here may have paid for increases of their world.
        again, more = self._fit_each(together, times)
        return _Fitted(tuple(again), (*cut, *dropped, *more))

    def _fit_each(self, trades: Iterable[Trade], times: int) -> tuple[list[Trade], list[Dropped]]:
        fitted, cut = list[Trade](), list[Dropped]()
        for world_id, group in groupby(trades, key=lambda trade: trade.world_id):
            fitting, dropped = self._worlds[world_id].fit(group, times)
            fitted += fitting
            cut += dropped
        return fitted, cut

    def fit_together(self, trades: Iterable[Trade], times: int = 1) -> _Fitted:
        """Return what fits the budget of all together."""
        fitted, cut = self._together.fit(trades, times)
        return _Fitted(tuple(fitted), tuple(cut))

    def beside(self, trades: tuple[Trade, ...]) -> "_Budgets":
        """Return what trades leave for an overlay that stands in for them."""
        worlds = dict(self._worlds)
        for world_id, group in groupby(trades, key=lambda trade: trade.world_id):
            if world_id:  # else it is of all worlds, and in no world's budget
                worlds[world_id] = worlds[world_id].beside(group)
        return _Budgets(worlds, self._together.beside(trades))


def _trades(
    request: MultiWorldRebalanceRequest,
    instruments: Instruments,
    holdings: tuple[Holding, ...],
    marks: Marks,
) -> tuple[_Fitted, _Fitted]:
    """Return the trades of the worlds, and those that are netted over all worlds."""
    budgets = _Budgets.of(request)
    if request.mode == "overlay":
        planner = OverlayPlanner(request.overlay, instruments)
        fitted = budgets.fit_worlds(planner.scaled(request.worlds, holdings, marks))
        return fitted, fitted
    apart = net(holdings, marks, "strategy" if request.scope == "strategy" else "world")
    worlds = budgets.fit_worlds(apart)
    together = budgets.fit_together(net(holdings, marks, "global"))
    if request.mode == "hybrid":
        planner = OverlayPlanner(request.overlay, instruments)
        ahead = planner.ahead_of(worlds.trades, holdings, marks)
        worlds = _between(budgets.beside(worlds.trades).fit_worlds(ahead, 2), worlds)
        ahead = planner.ahead_of(together.trades, holdings, marks)
        together = _between(budgets.beside(together.trades).fit_together(ahead, 2), together)
    return worlds, together


def _between(overlay: _Fitted, positions: _Fitted) -> _Fitted:
    """Return the trades of positions between those of an overlay and those that take it back."""
    unwind = _Fitted(tuple(taken_back(trade) for trade in overlay.trades if trade.lots))
    return overlay + positions + unwind


def _world_plans(request: MultiWorldRebalanceRequest, fitted: _Fitted) -> dict[str, WorldPlan]:
    trades: dict[str, list[Trade]] = {change.world_id: [] for change in request.worlds}
    cut: dict[str, list[Dropped]] = {change.world_id: [] for change in request.worlds}
    strategies: dict[str, set[str]] = {change.world_id: set() for change in request.worlds}
    for trade in fitted.trades:
        trades[trade.world_id].append(trade)
    for item in fitted.cut:
        cut[item.world_id].append(item)
    for position in request.positions:
        strategies[position.world_id].add(position.strategy_id)
    return {
        change.world_id: _world_plan(
            change, strategies[change.world_id], trades[change.world_id], cut[change.world_id]
        )
        for change in request.worlds
    }


def _world_plan(
    change: AllocationChange, strategies: set[str], trades: list[Trade], cut: list[Dropped]
) -> WorldPlan:
    scales = Scales(change)
    named = strategies | {item.strategy_id for item in change.strategies}
    deltas, dropped = listed(trades, cut)
    return WorldPlan(
        world_id=change.world_id,
        before=change.before,
        after=change.after,
        scale=rounded(scales.world),
        scale_by_strategy={name: rounded(scales.of(name)) for name in sorted(named)},
        deltas=deltas,
        dropped=dropped,
    )


def _alpha_metrics(
    request: MultiWorldRebalanceRequest, evidence: Iterable[EvidenceMetrics]
) -> AlphaMetricsEnvelope:
    """Return the metrics of the request's worlds and of their strategies, as they were measured."""
    known = {change.world_id for change in request.worlds}
    found = sorted(
        (item for item in evidence if item.world_id in known),
        key=lambda item: (item.world_id, item.strategy_id),
    )
    per_strategy: dict[str, dict[str, dict[str, float | None]]] = {}
    for item in found:
        if item.strategy_id:
            per_strategy.setdefault(item.world_id, {})[item.strategy_id] = item.metrics
    return AlphaMetricsEnvelope(
        per_world={item.world_id: item.metrics for item in found if not item.strategy_id},
        per_strategy=per_strategy,
    )
