"""What a strategy's evidence must show before it enters a stage: measured returns, pinned data, signals."""

from activities.decisions.candidate import Candidate
from qmtl_sdk.contracts.policy import GatingPolicy
from qmtl_sdk.contracts.promotions import Condition

# Characters of a fingerprint that people see.
_SHOWN = 24


def evidence_conditions(
    gating: GatingPolicy, candidate: Candidate | None, pinned: str
) -> tuple[Condition, ...]:
    """List the conditions on a strategy's evidence. `pinned` is the dataset fingerprint that it must have."""
    fingerprint = candidate.dataset_fingerprint if candidate else ""
    judged_on = f"it was judged on data with the fingerprint {fingerprint[:_SHOWN] or 'none'}"
    own = candidate.self_reported if candidate else ""
    found = [
        condition("measured", not own, "the service has measured its returns", f"self-reported: {own}"),
        condition(
            "fingerprint",
            bool(pinned) and fingerprint == pinned,
            "it was judged on the pinned data",
            f"{judged_on}, the policy pins {pinned[:_SHOWN] or 'none'}",
        ),
    ]
    if gating.required_signals:
        metrics = candidate.metrics if candidate else {}
        missing = [name for name in gating.required_signals if metrics.get(name) is None]
        found.append(
            condition(
                "signals",
                not missing,
                f"required: {', '.join(gating.required_signals)}",
                f"the required metric {', '.join(missing)} is missing (gating_policy.required_signals)",
            )
        )
    return tuple(found)


def why_it_stays(gating: GatingPolicy, candidate: Candidate) -> str:
    """Return why a decision alone takes a strategy no further than backtest; empty where nothing stops it.

    Where the policy pins no data, the decision pins what the strategy was judged on.
    """
    pinned = gating.dataset_fingerprint or candidate.dataset_fingerprint
    found = evidence_conditions(gating, candidate, pinned)
    return next((item.detail for item in found if not item.met), "")


def condition(name: str, met: bool, held: str, lacking: str) -> Condition:
    """Build a condition with the text of whether it is met."""
    return Condition(name=name, met=met, detail=held if met else lacking)
