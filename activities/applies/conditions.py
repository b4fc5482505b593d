"""The conditions of a strategy's next stage, by the world's policy.

Plans, promotions and explanations share them.
"""

from datetime import timedelta

from activities.applies.context import PlanningContext
from qmtl_sdk.contracts.decisions import StrategyDecision
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.plans import StrategyAllocation
from qmtl_sdk.contracts.promotions import Condition


def own_conditions(
    strategy_id: str, before: StrategyAllocation, target: str, context: PlanningContext
) -> tuple[Condition, ...]:
    """List the conditions on the strategy itself for the mode `target`.

    They are the stage before, the data that it was judged on, required signals, and its campaign.
    """
    gating, evidence = context.policy.gating_policy, context.evidence.get(strategy_id)
    fingerprint, metrics = (evidence.dataset_fingerprint, evidence.metrics) if evidence else ("", {})
    found = []
    if target == "live":
        found.append(
            _condition(
                "stage",
                before.active and before.mode == "paper",
                "it runs in dryrun",
                "it must run in dryrun before it can go live",
            )
        )
    pinned = gating.dataset_fingerprint or ""
    judged_on = fingerprint[:24] or "none"
    other = f"it was judged on data with the fingerprint {judged_on}, the policy pins {pinned[:24] or 'none'}"
    found.append(
        _condition(
            "fingerprint", bool(pinned) and fingerprint == pinned, "it was judged on the pinned data", other
        )
    )
    if gating.required_signals:
        missing = [name for name in gating.required_signals if metrics.get(name) is None]
        found.append(
            _condition(
                "signals",
                not missing,
                f"required: {', '.join(gating.required_signals)}",
                f"the required signal {', '.join(missing)} is missing",
            )
        )
    stage, window = (
        ("dryrun", gating.campaign.dryrun) if target == "live" else ("backtest", gating.campaign.backtest)
    )
    if window:
        since = context.stage_since(strategy_id)
        spent = (context.now - since).total_seconds() if since else 0.0
        due = since + timedelta(seconds=window) if since else None
        been = f"it has been active in {stage} for {format_duration(round(spent, 1))}"
        found.append(
            Condition(
                name="campaign",
                met=spent >= window,
                detail=been if spent >= window else f"{been} of {format_duration(window)}",
                due=due if spent < window else None,
            )
        )
    return tuple(found)


def conditions(strategy_id: str, target: str, context: PlanningContext) -> tuple[Condition, ...]:
    """List all conditions of the mode `target` for a strategy, except the approvals."""
    gating, decision = context.policy.gating_policy, context.decision
    item = decision.of(strategy_id) if decision else None
    age = (context.now - decision.decided_at).total_seconds() if decision else 0.0
    found = []
    if decision is None or item is None:
        found.append(Condition(name="decision", met=False, detail="the world has not judged it"))
    elif age > decision.ttl:
        found.append(
            Condition(
                name="decision",
                met=False,
                detail=f"the newest decision is {format_duration(round(age, 1))} old, "
                f"its ttl is {format_duration(decision.ttl)}: qmtl world decide",
            )
        )
    else:
        found.append(
            _condition(
                "decision",
                item.active,
                f"the newest decision has it active{f', rank {item.rank}' if item.rank else ''}",
                f"the newest decision has it inactive: {_why(item)}",
            )
        )
    allowed = rank_of(target) <= rank_of(context.policy.highest_mode)
    found.append(
        _condition(
            "policy",
            allowed,
            f"the policy lets strategies go to {gating.domains.to}",
            f"the policy lets strategies go no further than {gating.domains.to}",
        )
    )
    found.append(
        _condition(
            "share_policy",
            gating.share_policy is not None,
            f"domains share {gating.share_policy}",
            "the policy does not say what domains may share",
        )
    )
    if target == "live":
        found.append(
            _condition(
                "allow_live",
                context.world.spec.allow_live,
                "the world allows live",
                "the world does not allow live: qmtl world allow-live",
            )
        )
    return (*found, *own_conditions(strategy_id, context.allocation(strategy_id), target, context))


def unmet_condition(
    strategy_id: str, before: StrategyAllocation, target: str, context: PlanningContext
) -> str:
    """Return the first condition of a mode that is not met; empty where all are met."""
    return next(
        (
            condition.detail
            for condition in own_conditions(strategy_id, before, target, context)
            if not condition.met
        ),
        "",
    )


def _condition(name: str, met: bool, held: str, lacking: str) -> Condition:
    return Condition(name=name, met=met, detail=held if met else lacking)


def _why(item: StrategyDecision) -> str:
    return (
        "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations[:3])
        or "no reason is stored"
    )
