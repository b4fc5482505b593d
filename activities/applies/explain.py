"""Explain in lines of text how a strategy was judged, its allocation, and what its next stage requires."""

from collections.abc import Mapping

from activities.applies.conditions import unmet_condition
from activities.applies.context import PlanningContext
from activities.decisions.candidate import HysteresisState
from activities.decisions.explain import find_strategy, judgment_lines, require_decision, state_line
from qmtl_sdk.contracts.decisions import Explanation, StrategyDecision
from qmtl_sdk.contracts.domains import MODE_OF
from qmtl_sdk.contracts.plans import StrategyAllocation


def explain(reference: str, context: PlanningContext, states: Mapping[str, HysteresisState]) -> Explanation:
    """Explain the newest decision about a strategy, and its next stage. `reference` is as in `find_strategy`.

    Raises QmtlError: E_DECISION_UNKNOWN, E_STRATEGY_UNKNOWN.
    """
    world_id = context.world.spec.world
    decision = require_decision(world_id, context.decision)
    item = find_strategy(reference, world_id, decision)
    allocation = context.allocation(item.strategy_id)
    lines = [
        f"{item.label} in {world_id}: {allocation} "
        f"(policy version {decision.policy_version}, judged {decision.decided_at:%Y-%m-%d %H:%M:%S} UTC)",
        *judgment_lines(item),
    ]
    if any(found.halted for found in context.activations if found.strategy_id == item.strategy_id):
        lines.append(f"  halted: qmtl world resume {world_id} -s {item.label} lifts it")
    state = states.get(item.strategy_id)
    if state is not None:
        lines.append(state_line(state))
    if item.active and allocation.mode != context.policy.highest_mode:
        lines.append(_next_stage_line(item, context))
    return Explanation(
        world_id=world_id,
        strategy_id=item.strategy_id,
        name=item.name,
        decision=item,
        lines=tuple(lines),
    )


def _next_stage_line(item: StrategyDecision, context: PlanningContext) -> str:
    """Name the next stage of a strategy, and the first condition that it does not meet."""
    allocation = context.allocation(item.strategy_id)
    stage = "dryrun" if allocation.rank < 1 else "live"
    after = StrategyAllocation(active=True, mode=MODE_OF[stage], weight=item.weight)
    unmet = unmet_condition(item.strategy_id, allocation, after, context)
    world_id = context.world.spec.world
    return f"  next stage, {stage}: {unmet or f'an apply may take it there: qmtl world apply {world_id}'}"
