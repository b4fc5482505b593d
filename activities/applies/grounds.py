"""What a plan rests on, strategy by strategy, and the check that it has not changed since."""

from collections.abc import Iterable, Mapping

from sqlmodel import Session

from activities.applies.conditions import entry_conditions
from activities.applies.context import PlanningContext
from activities.applies.planning_context import planning_context
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.plans import ApplyPlan, Change, Grounds, plan_etag


def grounds_of(change: Change, context: PlanningContext) -> Grounds:
    """Return what a change rests on."""
    evidence = context.evidence.get(change.strategy_id)
    decision = context.decision.of(change.strategy_id) if context.decision else None
    found = Grounds(
        active=decision is not None and decision.active,
        violations=decision.violations if decision else (),
        conditions=entry_conditions(change.strategy_id, change.before, change.after, context),
    )
    if evidence is None:
        return found
    return found.model_copy(
        update={
            "evidence_seq": evidence.evidence_seq,
            "content_hash": evidence.content_hash,
            "returns_hash": evidence.returns_hash,
            "dataset_fingerprint": evidence.dataset_fingerprint,
            "self_reported": evidence.self_reported,
            "data_first": evidence.data_first,
            "data_last": evidence.data_last,
            "newest_bar": evidence.newest_bar,
            "metrics": evidence.metrics,
        }
    )


def require_unchanged(session: Session, plan: ApplyPlan) -> PlanningContext:
    """Check that the plan would still be made, and return what it is made from. The caller holds the world.

    Raises QmtlError: E_ETAG where activations, evidence, policy, conditions or edges have changed;
    E_DECISION_UNKNOWN where strategies would trade more on a decision that is no longer fresh.
    """
    more = [change for change in plan.changes if change.goes_up]
    context = planning_context(session, plan.world_id, [change.strategy_id for change in more])
    grounds = {change.strategy_id: grounds_of(change, context) for change in more}
    etag = plan_etag(context.world_etag, grounds)
    if etag != plan.etag:
        raise _outdated(plan, _changed(more, grounds), etag)
    if more:
        require_fresh_decision(context)
    return context


def require_same_world(session: Session, plan: ApplyPlan) -> PlanningContext:
    """Check that nobody has changed the world since the freeze of this plan, and return it as it is.

    The caller holds the world.

    Evidence may have come meanwhile: it is for the next decision, and no author keeps a world frozen with it.

    Raises QmtlError (E_ETAG) where activations, policy or edges have changed.
    """
    context = planning_context(session, plan.world_id, ())
    # The freeze may have closed the edge to live.
    world_etag = context.model_copy(update={"live_edge": plan.live_edge_before}).world_etag
    if world_etag != plan.world_etag:
        raise _outdated(plan, "its activations, policy or edge to live", world_etag)
    return context


def require_fresh_decision(context: PlanningContext) -> DecisionEnvelope:
    """Return the newest decision. Raises QmtlError (E_DECISION_UNKNOWN) where it is older than its ttl."""
    decision, world = context.decision, context.world.spec.world
    if decision is None:
        raise QmtlError(
            "E_DECISION_UNKNOWN",
            f"world {world} has not been judged yet",
            f"submit a strategy, or qmtl world decide {world}",
        )
    age = (context.now - decision.decided_at).total_seconds()
    if age > decision.ttl:
        raise QmtlError(
            "E_DECISION_UNKNOWN",
            f"the newest decision of {world} is {format_duration(age)} old, "
            f"its ttl is {format_duration(decision.ttl)}",
            f"judge it again: qmtl world decide {world}",
        )
    return decision


def _outdated(plan: ApplyPlan, what: str, etag: str) -> QmtlError:
    return QmtlError(
        "E_ETAG",
        f"{plan.world_id} has changed since the plan was made: {what}",
        "request a new apply",
        etag=etag,
    )


def _changed(changes: Iterable[Change], grounds: Mapping[str, Grounds]) -> str:
    """Name what has changed: of the first strategy that does, or of the world."""
    for change in changes:
        now = grounds[change.strategy_id].essence
        differing = [name for name, value in change.grounds.essence.items() if now[name] != value]
        if differing:
            return f"{', '.join(differing)} of {change.label}"
    return "its activations, policy or edge to live"
