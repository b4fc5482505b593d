"""Where a strategy stands in a world, and why, as a person would say it: pure, of what the planner and hysteresis know."""

from collections.abc import Mapping

from activities.applies.conditions import held_back
from activities.applies.context import PlanningContext
from activities.decisions.candidate import HysteresisState
from qmtl_sdk.contracts.decisions import Explanation, StrategyDecision
from qmtl_sdk.contracts.domains import MODE_OF
from qmtl_sdk.contracts.errors import QmtlError, nearest

_NAMES = {
    "evidence": "evidence",
    "data_currency": "data currency",
    "gates": "gates",
    "score": "score",
    "constraints": "constraints",
    "topk": "top-k",
    "hysteresis": "hysteresis",
}
_STEPS = tuple(_NAMES)


def named(strategy_id: str, context: PlanningContext) -> StrategyDecision:
    """The strategy of the newest decision that has this strategy_id, this name, or a strategy_id that begins so. Raises QmtlError: E_DECISION_UNKNOWN, E_STRATEGY_UNKNOWN."""
    decision, world = context.decision, context.world.spec.world
    if decision is None:
        raise QmtlError(
            "E_DECISION_UNKNOWN",
            f"world {world} has not been judged yet",
            "submit a strategy, or qmtl world decide",
        )
    found = [
        item
        for item in decision.strategies
        if strategy_id in (item.strategy_id, item.name)
        or (len(strategy_id) >= 8 and item.strategy_id.startswith(strategy_id))
    ]
    if len(found) != 1:
        names = [item.name for item in decision.strategies if item.name]
        what = (
            f"names several strategies of {world}"
            if found
            else f"is no strategy of {world}{nearest(strategy_id, names)}"
        )
        raise QmtlError(
            "E_STRATEGY_UNKNOWN",
            f"{strategy_id[:80]!r} {what}",
            "give its whole strategy_id; qmtl world show W lists them",
        )
    return found[0]


def explain(strategy_id: str, context: PlanningContext, states: Mapping[str, HysteresisState]) -> Explanation:
    """`strategy_id` as `named` takes it. Raises QmtlError: E_DECISION_UNKNOWN, E_STRATEGY_UNKNOWN."""
    mine = named(strategy_id, context)
    decision, world = context.decision, context.world.spec.world
    assert decision is not None  # it names the strategy
    allocation = context.allocation(mine.strategy_id)
    lines = [
        f"{mine.label} in {world}: {allocation} (policy version {decision.policy_version}, judged {decision.decided_at:%Y-%m-%d %H:%M:%S} UTC)"
    ]
    stopped = {violation.step for violation in mine.violations}
    first = min((_STEPS.index(step) for step in stopped), default=len(_STEPS))
    for number, step in enumerate(_STEPS):
        if step in stopped:
            lines += [
                f"  {_NAMES[step]}: {violation.rule}: {violation.detail}"
                for violation in mine.violations
                if violation.step == step
            ]
        elif number < first:
            figure = (
                f", {mine.score:.4g}"
                if step == "score" and mine.score is not None
                else f", rank {mine.rank}"
                if step == "topk" and mine.rank
                else ""
            )
            lines.append(f"  {_NAMES[step]}: passed{figure}")
        else:
            lines.append(f"  {_NAMES[step]}: not asked")
    state = states.get(mine.strategy_id)
    if state is not None:
        count = f"{state.passes} passes" if state.passes else f"{state.failures} failures"
        lines.append(
            f"  remembered: {'in' if state.active else 'out'} since {state.since:%Y-%m-%d %H:%M} (world time), {count} in a row"
        )
    if mine.active and allocation.mode != context.policy.highest_mode:
        target = MODE_OF["dryrun"] if allocation.rank < 1 else MODE_OF["live"]
        why = held_back(mine.strategy_id, allocation, target, context)
        lines.append(
            f"  next stage, {target}: {why or 'an apply may take it there: qmtl world apply ' + world}"
        )
    return Explanation(
        world_id=world, strategy_id=mine.strategy_id, name=mine.name, decision=mine, lines=tuple(lines)
    )
