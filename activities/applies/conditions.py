"""The conditions of a strategy's next stage, by the world's policy.

Plans, promotions and explanations share them.
"""

from datetime import datetime, timedelta

from activities.applies.context import PlanningContext
from activities.decisions.entry import condition, evidence_conditions
from activities.sessions.time_open import TimeOpen
from qmtl_sdk.contracts.decisions import StrategyDecision
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.plans import StrategyAllocation
from qmtl_sdk.contracts.promotions import Condition

# Conditions of the way to a stage, which a strategy that returns to it has met.
_WAY_THERE = ("stage", "campaign")


def entry_conditions(
    strategy_id: str, before: StrategyAllocation, after: StrategyAllocation, context: PlanningContext
) -> tuple[Condition, ...]:
    """List the conditions for a strategy to trade more than before; none where it does not.

    It must pass today. For a further stage it must also meet the conditions of that stage.
    """
    if not after.goes_beyond(before):
        return ()
    decision = context.decision.of(strategy_id) if context.decision else None
    passes = condition(
        "passes",
        decision is not None and decision.passes,
        "it passes today",
        f"it does not pass today: {_why(decision) if decision else 'the world has not judged it'}",
    )
    if after.rank == before.rank:
        return (passes,)
    return (passes, *own_conditions(strategy_id, before, after.mode, context))


def own_conditions(
    strategy_id: str, before: StrategyAllocation, target: str, context: PlanningContext
) -> tuple[Condition, ...]:
    """List the conditions on the strategy itself for the mode `target`.

    They are the stage before, the data that it was judged on, required signals, and its campaign.
    """
    gating, evidence = context.policy.gating_policy, context.evidence.get(strategy_id)
    found = []
    if target == "live":
        found.append(
            condition(
                "stage",
                before.active and before.mode == "paper",
                "it runs in dryrun",
                "it must run in dryrun before it can go live",
            )
        )
    found += evidence_conditions(gating, evidence, gating.dataset_fingerprint or "")
    campaign = gating.campaign
    if target == "live" and campaign.dryrun:
        found.append(_ran(campaign.dryrun, context.ran.get(strategy_id, TimeOpen()), context.now))
    if target != "live" and campaign.backtest:
        found.append(_stood(campaign.backtest, context.stage_since(strategy_id), context.now))
    return tuple(found)


def _stood(window: float, since: datetime | None, now: datetime) -> Condition:
    """Return the condition on the time in backtest, which needs no runner."""
    spent = (now - since).total_seconds() if since else 0.0
    been = f"it has been active in backtest for {format_duration(round(spent, 1))}"
    if spent >= window:
        return Condition(name="campaign", met=True, detail=been)
    due = since + timedelta(seconds=window) if since else None
    return Condition(name="campaign", met=False, detail=f"{been} of {format_duration(window)}", due=due)


def _ran(window: float, ran: TimeOpen, now: datetime) -> Condition:
    """Return the condition on the time in dryrun, which counts while a session of the strategy is open."""
    been = f"it has run in dryrun for {format_duration(round(ran.seconds, 1))}"
    if ran.seconds >= window:
        return Condition(name="campaign", met=True, detail=been)
    if ran.now:
        due = now + timedelta(seconds=window - ran.seconds)
        return Condition(name="campaign", met=False, detail=f"{been} of {format_duration(window)}", due=due)
    lacking = f"{been} of {format_duration(window)}, and no session runs it now"
    return Condition(name="campaign", met=False, detail=lacking)


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
                f"its ttl is {format_duration(decision.ttl)}: qmtl world decide {context.world.spec.world}",
            )
        )
    else:
        found.append(
            condition(
                "decision",
                item.passes,
                f"the newest decision has it active{f', rank {item.rank}' if item.rank else ''}",
                f"it is held and does not pass today: {_why(item)}"
                if item.active
                else f"the newest decision has it inactive: {_why(item)}",
            )
        )
    allowed = rank_of(target) <= rank_of(context.policy.highest_mode)
    found.append(
        condition(
            "policy",
            allowed,
            f"the policy lets strategies go to {gating.domains.to}",
            f"the policy lets strategies go no further than {gating.domains.to}",
        )
    )
    found.append(
        condition(
            "share_policy",
            gating.share_policy is not None,
            f"domains share {gating.share_policy}",
            "the policy does not say what domains may share",
        )
    )
    if target == "live":
        found.append(
            condition(
                "allow_live",
                context.world.spec.allow_live,
                "the world allows live",
                f"the world does not allow live: qmtl world allow-live {context.world.spec.world}",
            )
        )
    return (*found, *own_conditions(strategy_id, context.allocation(strategy_id), target, context))


def unmet_condition(
    strategy_id: str,
    before: StrategyAllocation,
    after: StrategyAllocation,
    context: PlanningContext,
    back: bool = False,
) -> str:
    """Return the first condition of trading more that is not met; empty where all are met.

    `back`: the strategy returns to a stage in which it was, and has been through the stages before.
    """
    for item in entry_conditions(strategy_id, before, after, context):
        if not item.met and not (back and item.name in _WAY_THERE):
            return item.detail
    if back and rank_of(after.mode) > rank_of(context.policy.highest_mode):
        return f"the policy lets strategies go no further than {context.policy.gating_policy.domains.to}"
    return ""


def _why(item: StrategyDecision) -> str:
    return (
        "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations[:3])
        or "no reason is stored"
    )
