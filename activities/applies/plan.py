"""The plan of an apply: a pure function of the request and of the world as it is now.

1. Strategies: those that the fresh decision has active and whose conditions are met (pinned data, required
   signals, the stage before, the campaign).
2. Steps: approvals as the policy requires for the furthest promotion, then freeze, drain, switch, unfreeze.
3. A rollback restores what an earlier apply found, but activates nothing that the newest decision does not.

What cannot be planned is refused here, before anything has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from activities.applies.conditions import unmet_condition
from activities.applies.context import PlanningContext, Snapshot
from activities.applies.grounds import grounds_of, require_fresh_decision
from activities.applies.weights import FULL, reduced_weights, total_weight
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.decisions import StrategyDecision
from qmtl_sdk.contracts.domains import MODE_OF, domain_of, rank_of
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.plans import (
    ApplyPlan,
    AwaitApprovals,
    Change,
    Drain,
    Freeze,
    LeftOut,
    PlanStep,
    StrategyAllocation,
    Switch,
    Unfreeze,
    plan_etag,
)
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import World


def plan_apply(request: ApplyRequest, requested_by: str, context: PlanningContext) -> ApplyPlan:
    """Plan the apply that a request asks for.

    Raises QmtlError: E_WORLD_ARCHIVED, E_SHARE_POLICY, E_FINGERPRINT_MISSING, E_LIVE_NOT_ALLOWED,
    E_DECISION_UNKNOWN, E_STRATEGY_UNKNOWN, E_WEIGHT, E_APPLY_EMPTY, E_ETAG.
    """
    context.world.require_active()
    _require_pinned_data(context.policy)
    target = _target(request, context)
    decision = require_fresh_decision(context)
    known = {item.strategy_id for item in decision.strategies}
    for strategy_id in (*request.strategies, *request.weights):
        if strategy_id not in known:
            raise QmtlError(
                "E_STRATEGY_UNKNOWN",
                f"world {context.world.spec.world} has not decided about {strategy_id[:80]}"
                f"{nearest(strategy_id, sorted(known))}",
                "submit it first",
            )
    changes, left_out = [], []
    for item in decision.strategies:
        if request.strategies and item.strategy_id not in request.strategies:
            continue
        before = context.allocation(item.strategy_id)
        after, why = _after(item, before, target, request, context)
        if why:
            left_out.append(LeftOut(strategy_id=item.strategy_id, name=item.name, why=why))
        elif after != before:
            changes.append(Change(strategy_id=item.strategy_id, name=item.name, before=before, after=after))
    if not changes:
        raise _nothing_to_change(context, left_out)
    changes += reduced_weights(changes, decision, context)
    goes_live = any(change.after.active and change.after.mode == "live" for change in changes)
    live_after = context.live_edge or (
        goes_live and context.policy.gating_policy.edges.post_promotion.enable_edges_to == "live"
    )
    fingerprint = context.policy.gating_policy.dataset_fingerprint or ""
    outcome = _Outcome(str(domain_of(target)), changes, left_out, live_after, fingerprint)
    return _plan(request, requested_by, context, outcome)


def plan_rollback(
    request: ApplyRequest, requested_by: str, context: PlanningContext, snapshot: Snapshot
) -> ApplyPlan:
    """Plan the way back to what the apply `request.rollback_of` found.

    A strategy goes back up only where it meets the conditions of its stage, but for the stage before and the
    campaign. Raises QmtlError: E_WORLD_ARCHIVED, E_APPLY_EMPTY, E_LIVE_NOT_ALLOWED, E_DECISION_UNKNOWN.
    """
    context.world.require_active()
    changes, left_out = [], []
    for strategy_id in sorted({*snapshot.allocations, *(item.strategy_id for item in context.activations)}):
        before = context.allocation(strategy_id)
        after = snapshot.allocations.get(strategy_id, StrategyAllocation())
        name = context.evidence[strategy_id].name if strategy_id in context.evidence else ""
        why = ""
        if after.goes_beyond(before):
            require_fresh_decision(context)
            why = unmet_condition(strategy_id, before, after, context, back=True)
        if why:
            left_out.append(LeftOut(strategy_id=strategy_id, name=name, why=why))
        elif after != before:
            changes.append(Change(strategy_id=strategy_id, name=name, before=before, after=after))
    opens = snapshot.live_edge and not context.live_edge
    if not context.world.spec.allow_live and (
        opens or any(change.after.mode == "live" and change.goes_up for change in changes)
    ):
        raise _live_not_allowed(context.world)
    outcome = _Outcome("before", changes, left_out, snapshot.live_edge, snapshot.fingerprint)
    return _plan(request, requested_by, context, outcome)


@dataclass(frozen=True)
class _Outcome:
    """What an apply leads to: `target` is a domain, or `before` for a rollback."""

    target: str
    changes: Sequence[Change]
    left_out: Sequence[LeftOut]
    live_edge: bool
    fingerprint: str


def _after(
    item: StrategyDecision,
    before: StrategyAllocation,
    target: str,
    request: ApplyRequest,
    context: PlanningContext,
) -> tuple[StrategyAllocation, str]:
    """Return the allocation that a strategy gets, and why it is left out if it is."""
    if not item.active:
        return StrategyAllocation(), ""
    if before.active and rank_of(before.mode) > rank_of(target):
        return before, ""  # it is in a further stage already
    weight = request.weights.get(item.strategy_id, item.weight)
    after = StrategyAllocation(active=True, mode=target, weight=weight)
    why = unmet_condition(item.strategy_id, before, after, context)
    return (before, why) if why else (after, "")


def _target(request: ApplyRequest, context: PlanningContext) -> str:
    """Return the mode that strategies are taken to. Raises QmtlError: E_LIVE_NOT_ALLOWED, E_APPLY_EMPTY."""
    highest = context.policy.highest_mode
    if request.to:
        target = MODE_OF[request.to]
    elif highest == "live" and context.world.spec.allow_live and _all_in_paper(context):
        target = "live"
    else:
        target = "paper"
    if target == "live" and not context.world.spec.allow_live:
        raise _live_not_allowed(context.world)
    if rank_of(target) > rank_of(highest):
        to = context.policy.gating_policy.domains.to
        raise QmtlError(
            "E_LIVE_NOT_ALLOWED" if target == "live" else "E_APPLY_EMPTY",
            f"the policy lets strategies go no further than {to}",
            "add a policy version with gating_policy.domains.to",
        )
    return target


def _all_in_paper(context: PlanningContext) -> bool:
    """Whether every strategy that the newest decision has active trades in paper or beyond."""
    strategies = context.decision.strategies if context.decision else ()
    active = [item.strategy_id for item in strategies if item.active]
    paper = rank_of("paper")
    return bool(active) and all(context.allocation(strategy_id).rank >= paper for strategy_id in active)


def _nothing_to_change(context: PlanningContext, left_out: Sequence[LeftOut]) -> QmtlError:
    why = "; ".join(str(item) for item in left_out[:5])
    return QmtlError(
        "E_APPLY_EMPTY",
        f"there is nothing to change in {context.world.spec.world}{f': {why}' if why else ''}",
        "qmtl world explain W STRATEGY says what a strategy lacks",
    )


def _live_not_allowed(world: World) -> QmtlError:
    return QmtlError(
        "E_LIVE_NOT_ALLOWED",
        f"world {world.spec.world} does not allow live",
        "an operator allows it with: qmtl world allow-live W",
    )


def _require_etag(request: ApplyRequest, etag: str) -> None:
    """Raises QmtlError (E_ETAG) where the world has changed since the caller read the plan."""
    if request.etag and request.etag != etag:
        raise QmtlError(
            "E_ETAG",
            "the world has changed since that plan was made",
            "read the new plan (--dry-run), and request it again",
            etag=etag,
        )


def _require_pinned_data(policy: Policy) -> None:
    gating = policy.gating_policy
    if gating.dataset_fingerprint is None:
        raise QmtlError(
            "E_FINGERPRINT_MISSING",
            "the policy pins no data: gating_policy.dataset_fingerprint is missing",
            "add a policy version with it; qmtl world status W prints the fingerprint of the evidence",
        )
    if gating.share_policy is None:
        raise QmtlError(
            "E_SHARE_POLICY",
            "the policy does not say what domains may share",
            "add a policy version with gating_policy.share_policy: feature-artifacts-only",
        )


def _plan(request: ApplyRequest, requested_by: str, context: PlanningContext, outcome: _Outcome) -> ApplyPlan:
    """Build the plan with its steps. Raises QmtlError: E_WEIGHT, E_APPLY_EMPTY, E_ETAG."""
    changes = [
        change.model_copy(update={"grounds": grounds_of(change, context)}) for change in outcome.changes
    ]
    etag = plan_etag(
        context.world_etag, {change.strategy_id: change.grounds for change in changes if change.goes_up}
    )
    _require_etag(request, etag)
    live_edge = outcome.live_edge
    changed = {change.strategy_id for change in changes}
    others = [item for item in context.activations if item.active and item.strategy_id not in changed]
    total = total_weight(changes, others)
    if total > FULL and any(change.goes_up for change in changes):
        raise QmtlError(
            "E_WEIGHT",
            f"the weights of the active strategies would add up to {total:.4g}, more than the world",
            "give smaller weights",
        )
    if (
        not changes
        and live_edge == context.live_edge
        and outcome.fingerprint == context.world.pinned_fingerprint
    ):
        raise _nothing_to_change(context, outcome.left_out)
    gating = context.policy.gating_policy
    # Opening the edge to live needs the approvals of live, whatever the strategies do.
    up = [
        *(change.after.mode for change in changes if change.goes_up),
        *(["live"] if live_edge and not context.live_edge else []),
    ]
    required = max((gating.approvals_for(mode) for mode in up), default=0)
    acks = gating.apply.freeze_timeout_ms / 1000
    drain = gating.apply.drain_timeout_ms / 1000
    closes = request.rollback_of and gating.apply.on_rollback == "flatten"
    flatten = sum(change.leaves is not None for change in changes) if closes else 0
    steps: tuple[PlanStep, ...] = (
        AwaitApprovals(
            required=required,
            roles=gating.approvals.roles,
            expires_s=gating.approvals.expires,
            direct_signals=gating.approvals.direct_signals,
            requested_by=requested_by,
        ),
        Freeze(
            close_live_edge=context.live_edge and gating.edges.pre_promotion.disable_edges_to == "live",
            ack_timeout_s=acks,
        ),
        Drain(timeout_s=drain),
        Switch(changes=len(changes), open_live_edge=live_edge, flatten=flatten),
        Unfreeze(ack_timeout_s=acks),
    )
    assert context.policy.version is not None  # a stored policy has one
    return ApplyPlan(
        world_id=context.world.spec.world,
        run_id=request.run_id,
        target=outcome.target,
        requested_by=requested_by,
        reason=request.reason,
        rollback_of=request.rollback_of,
        changes=tuple(changes),
        left_out=tuple(outcome.left_out),
        live_edge_before=context.live_edge,
        live_edge_after=live_edge,
        fingerprint_before=context.world.pinned_fingerprint,
        fingerprint_after=outcome.fingerprint,
        policy_version=context.policy.version,
        etag=etag,
        world_etag=context.world_etag,
        steps=steps,
    )
