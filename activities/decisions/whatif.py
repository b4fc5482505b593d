"""A draft policy over the recorded evidence: which past decisions would have been others. Nothing is written."""

from collections.abc import Sequence

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.constraints import Correlate
from activities.decisions.judgment import judge
from activities.decisions.store import DecisionInputs
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.worlds import UtcTime


class ChangedOutcome(Model):
    """A strategy that would have been decided about otherwise."""

    strategy_id: str
    name: str
    was: str
    would_be: str
    why: str


class ChangedDecision(Model):
    decided_at: UtcTime
    as_of: UtcTime
    policy_version: int
    changes: tuple[ChangedOutcome, ...]


class PolicyReplayResult(Model):
    """How many past decisions were looked at, and those that would differ."""

    decisions: int
    differ: tuple[ChangedDecision, ...]


def replay(
    draft: Policy,
    past: Sequence[tuple[DecisionEnvelope, DecisionInputs, tuple[Candidate, ...]]],
    correlate: Correlate,
) -> PolicyReplayResult:
    """`past`: oldest first. What hysteresis remembers goes on from what it remembered before the first of them, as the draft would have had it."""
    states: dict[str, HysteresisState] = dict(past[0][1].before) if past else {}
    differ = []
    for envelope, _, candidates in past:
        verdicts = judge(draft, candidates, envelope.as_of, states, correlate)
        states = {**states, **verdicts.states}
        was = {item.strategy_id: item for item in envelope.strategies}
        changes = tuple(
            change
            for item in verdicts.strategies
            if (change := _otherwise(was.get(item.strategy_id), item)) is not None
        )
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


def _otherwise(was: StrategyDecision | None, now: StrategyDecision) -> ChangedOutcome | None:
    before, after = (_words(item) if item else "not known" for item in (was, now))
    if before == after:
        return None
    violations = (now if not now.active else was or now).violations
    why = "; ".join(f"{item.rule}: {item.detail}" for item in violations[:3]) or "it would pass every step"
    return ChangedOutcome(strategy_id=now.strategy_id, name=now.name, was=before, would_be=after, why=why)


def _words(item: StrategyDecision) -> str:
    return f"active, weight {item.weight:.4g}" if item.active else "not active"
