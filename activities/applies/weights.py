"""The weights of a plan: what the changes of an apply leave to the strategies that trade already."""

from collections.abc import Sequence

from activities.applies.context import PlanningContext, allocation_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope, DecisionEnvelope
from qmtl_sdk.contracts.plans import Change

FULL = 1 + 1e-9
"""The largest sum of weights: the whole world, and room for rounding."""


def reduced_weights(
    changes: Sequence[Change], decision: DecisionEnvelope, context: PlanningContext
) -> list[Change]:
    """Return the reduction of other strategies' weights to the decision's, where the changes need the room.

    A strategy keeps the weight with which it was promoted. Without this, those promoted later would find
    nothing left.
    """
    changed = {change.strategy_id for change in changes}
    others = [item for item in context.activations if item.active and item.strategy_id not in changed]
    if total_weight(changes, others) <= FULL:
        return []
    reduced = []
    for item in others:
        today, before = decision.of(item.strategy_id), allocation_of(item)
        if today is not None and today.weight < before.weight:
            after = before.model_copy(update={"weight": today.weight})
            reduced.append(Change(strategy_id=item.strategy_id, name=today.name, before=before, after=after))
    return reduced


def total_weight(changes: Sequence[Change], others: Sequence[ActivationEnvelope]) -> float:
    """Add up the weights of the active strategies after the changes; `others` are those without one."""
    weights = [change.after.weight for change in changes if change.after.active]
    return sum(weights) + sum(item.weight for item in others)
