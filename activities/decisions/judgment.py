"""The judgment of a world: one pure function of evidence, policy and hysteresis states.

`STEPS` are its steps, in order. Each takes the shortlist of all candidates and adds violations to those that
it leaves out: at which step, by which rule, with which figures. `explain` prints the steps in the same order.
A new step is an entry of `STEPS`, its function, and its name in `JudgmentStep`.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.constraints import check_constraints
from activities.decisions.entry import why_it_stays
from activities.decisions.gates import check_bands, check_data_currency, check_evidence, check_gates
from activities.decisions.hysteresis import apply_hysteresis
from activities.decisions.ranking import score_entries, select_top_k
from activities.decisions.steps import ClashFinders, Entry, JudgmentInputs, Shortlist, Step
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.decisions import ActivationEnvelope, StrategyDecision
from qmtl_sdk.contracts.domains import rank_of
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.policy import Policy

STEPS = (
    Step("evidence", "evidence", check_evidence, checks_all=True),
    Step("data_currency", "data currency", check_data_currency, checks_all=True),
    Step("gates", "gates", check_gates, checks_all=True),
    Step("bands", "hysteresis bands", check_bands, checks_all=True),
    Step("score", "score", score_entries),
    Step("constraints", "constraints", check_constraints),
    Step("topk", "top-k", select_top_k),
    Step("hysteresis", "hysteresis", apply_hysteresis),
)

# Active strategies that a decision's summary names.
_SUMMARY_NAMES = 5


class JudgmentResult(Model):
    """A decision for every candidate, and its next hysteresis state by strategy_id.

    Active strategies come first, by rank; then the rest by name.
    """

    strategies: tuple[StrategyDecision, ...]
    states: dict[str, HysteresisState]


def judge(
    policy: Policy,
    candidates: Sequence[Candidate],
    now: datetime,
    states: Mapping[str, HysteresisState],
    clash_finder: ClashFinders,
) -> JudgmentResult:
    """Judge all candidates of a world.

    `now` is the world's time, `states` the hysteresis states after the last judgment, `clash_finder` compares
    the candidates' daily returns.
    """
    inputs = JudgmentInputs(policy, now, states, clash_finder)
    shortlist = Shortlist(tuple(Entry(candidate) for candidate in candidates))
    for step in STEPS:
        shortlist = step.run(inputs, shortlist)
    active = sorted((entry for entry in shortlist.entries if entry.active), key=_active_order)
    measured = [entry for entry in active if not entry.candidate.self_reported]
    weight = _weight(shortlist.slot, len(measured))
    rest = [_decision(policy, entry, 0.0) for entry in shortlist.entries if not entry.active]
    return JudgmentResult(
        strategies=(
            *(_decision(policy, entry, 0.0 if entry.candidate.self_reported else weight) for entry in active),
            *sorted(rest, key=lambda item: (item.name, item.strategy_id)),
        ),
        states={entry.candidate.strategy_id: entry.state for entry in shortlist.entries if entry.state},
    )


def summary(decisions: tuple[StrategyDecision, ...]) -> str:
    """Summarize a judgment in one line."""
    active = [item.label for item in decisions if item.active]
    count = f"{len(active)} of {len(decisions)} active"
    if not active:
        return count
    more = " …" if len(active) > _SUMMARY_NAMES else ""
    return f"{count}: {', '.join(active[:_SUMMARY_NAMES])}{more}"


def etag_of(
    world_id: str, policy_version: int, effective_mode: str, decisions: tuple[StrategyDecision, ...]
) -> str:
    """Hash the content of a decision, without its time."""
    return hash_of(
        {
            "world": world_id,
            "policy": policy_version,
            "mode": effective_mode,
            "strategies": [item.json_dict() for item in decisions],
        }
    )


def furthest(
    judged_mode: str, strategies: Sequence[StrategyDecision], activations: Sequence[ActivationEnvelope]
) -> str:
    """Return the furthest mode of the strategies that a decision leaves active."""
    active = {item.strategy_id for item in strategies if item.active}
    modes = [item.effective_mode for item in activations if item.active and item.strategy_id in active]
    return max([judged_mode, *(mode for mode in modes if mode)], key=rank_of)


def _active_order(entry: Entry) -> tuple[float, int, str]:
    """Order active entries by rank; those that hysteresis holds come last."""
    rank = entry.rank if entry.passes and entry.rank is not None else float("inf")
    return (rank, entry.candidate.bound, entry.candidate.strategy_id)


def _weight(slot: float | None, active: int) -> float:
    """Return the weight of each active strategy whose returns are measured; the others have none.

    Strategies that hysteresis holds may take more slots than were counted; together they never exceed the
    world.
    """
    if not active:
        return 0.0
    share = 1.0 / active
    return share if slot is None else min(slot, share)


def _decision(policy: Policy, entry: Entry, weight: float) -> StrategyDecision:
    candidate = entry.candidate
    decision = StrategyDecision(
        strategy_id=candidate.strategy_id,
        name=candidate.name,
        active=entry.active,
        rank=entry.rank,
        score=entry.score,
        dataset_fingerprint=candidate.dataset_fingerprint,
        violations=entry.violations,
    )
    if not entry.active:
        return decision
    annual_return = candidate.metrics.get("annual_return")
    contribution = None if annual_return is None else weight * annual_return
    stays = ""
    if policy.judged_mode != "validate":
        failing = "" if entry.passes else "it does not pass today"
        stays = failing or why_it_stays(policy.gating_policy, candidate)
    return decision.model_copy(
        update={"weight": weight, "side": candidate.side, "contribution": contribution, "stays": stays}
    )
