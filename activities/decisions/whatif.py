"""Replay a draft policy over recorded evidence: which past decisions would differ. Nothing is stored."""

from collections.abc import Sequence

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.judgment import judge
from activities.decisions.steps import ClashFinders
from activities.decisions.store import DecisionInputs
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import UtcTime

# Violations that explain a changed outcome.
_VIOLATIONS = 3


class ChangedOutcome(Model):
    """A strategy for which a past decision would differ."""

    strategy_id: str
    name: str
    was: str
    would_be: str
    why: str


class ChangedDecision(Model):
    """A past decision that would differ, with the strategies for which it would."""

    decided_at: UtcTime
    as_of: UtcTime
    policy_version: int
    changes: tuple[ChangedOutcome, ...]


class PolicyReplayResult(Model):
    """The number of replayed decisions, and those that would differ."""

    decisions: int
    differ: tuple[ChangedDecision, ...]


def replay(
    draft: Policy,
    past: Sequence[tuple[DecisionEnvelope, DecisionInputs, tuple[Candidate, ...]]],
    clash_finder: ClashFinders,
) -> PolicyReplayResult:
    """Judge the candidates of `past` decisions, oldest first, by the draft.

    Hysteresis starts from the recorded state before the first decision and continues with the draft's own
    results.
    """
    states: dict[str, HysteresisState] = dict(past[0][1].before) if past else {}
    differ = []
    for envelope, _, candidates in past:
        result = judge(draft, candidates, envelope.as_of, states, clash_finder)
        states = {**states, **result.states}
        recorded = {item.strategy_id: item for item in envelope.strategies}
        outcomes = [_changed_outcome(recorded.get(item.strategy_id), item) for item in result.strategies]
        changes = tuple(outcome for outcome in outcomes if outcome is not None)
        if changes:
            differ.append(
                ChangedDecision(
                    decided_at=envelope.decided_at,
                    as_of=envelope.as_of,
                    policy_version=envelope.policy_version,
                    changes=changes,
                )
            )
    return PolicyReplayResult(decisions=len(past), differ=tuple(differ))


def _changed_outcome(was: StrategyDecision | None, now: StrategyDecision) -> ChangedOutcome | None:
    """Compare two outcomes; None if they are equal."""
    before = _outcome(was) if was else "not known"
    after = _outcome(now)
    if before == after:
        return None
    violations = (now if not now.active else was or now).violations
    reasons = [f"{item.rule}: {item.detail}" for item in violations[:_VIOLATIONS]]
    why = "; ".join(reasons) or "it would pass every step"
    return ChangedOutcome(strategy_id=now.strategy_id, name=now.name, was=before, would_be=after, why=why)


def _outcome(item: StrategyDecision) -> str:
    return f"active, weight {item.weight:.4g}" if item.active else "not active"
