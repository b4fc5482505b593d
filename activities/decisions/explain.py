"""Explain a decision about one strategy in lines of text: judgment steps and hysteresis state."""

from activities.decisions.candidate import HysteresisState
from activities.decisions.judgment import STEPS
from activities.decisions.steps import Step
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.references import one_strategy


def judgment_lines(decision: StrategyDecision) -> list[str]:
    """Return a line for each step of the judgment, or for each violation of a step."""
    lines: list[str] = []
    rejected = any(violation.step == "evidence" for violation in decision.violations)
    left_out = False
    for step in STEPS:
        found = [item for item in decision.violations if item.step == step.name]
        if found:
            left_out = True
            lines += [f"  {step.label}: {item.rule}: {item.detail}" for item in found]
        elif left_out and (rejected or not step.checks_all):
            lines.append(f"  {step.label}: not reached")
        else:
            lines.append(f"  {step.label}: passed{_figure(step, decision)}")
    return lines


def state_line(state: HysteresisState) -> str:
    """Describe a hysteresis state in a line."""
    count = f"{state.passes} passes" if state.passes else f"{state.failures} failures"
    active = "active" if state.active else "inactive"
    return f"  hysteresis state: {active} since {state.since:%Y-%m-%d %H:%M} (world time), {count} in a row"


def find_strategy(reference: str, world_id: str, decision: DecisionEnvelope | None) -> StrategyDecision:
    """Find a strategy in a world's newest decision.

    `reference` is as in `qmtl_sdk.contracts.references`.

    Raises QmtlError: E_DECISION_UNKNOWN; E_STRATEGY_UNKNOWN where none or several match.
    """
    return one_strategy(reference, world_id, require_decision(world_id, decision).strategies)


def require_decision(world_id: str, decision: DecisionEnvelope | None) -> DecisionEnvelope:
    """Return the decision. Raises QmtlError (E_DECISION_UNKNOWN) where there is none."""
    if decision is None:
        raise QmtlError(
            "E_DECISION_UNKNOWN",
            f"world {world_id} has not been judged yet",
            f"submit a strategy, or qmtl world decide {world_id}",
        )
    return decision


def _figure(step: Step, decision: StrategyDecision) -> str:
    if step.name == "score" and decision.score is not None:
        return f", {decision.score:.4g}"
    if step.name == "topk" and decision.rank:
        return f", rank {decision.rank}"
    return ""
