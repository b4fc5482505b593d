"""Hysteresis: who passes today comes in only after passing often enough, and who fails goes out only after failing often enough; neither before its dwell.

What is remembered (`Standing`) is stored with the decision. A strategy whose evidence was rejected goes out at once.
"""

from datetime import datetime
from typing import Literal

from activities.decisions.candidate import Candidate, HysteresisState
from qmtl_sdk.contracts.decisions import Violation
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.policy import Hysteresis

Transition = Literal["promote", "demote", "hold"]


def next_state(
    rules: Hysteresis,
    before: HysteresisState | None,
    passes: bool,
    rejected: bool,
    now: datetime,
    counts: bool = True,
) -> tuple[Transition, HysteresisState, str]:
    """What becomes of a strategy that passes or fails today: the verdict, what is remembered of it, and why it is held."""
    was, more = before or HysteresisState(since=now), int(counts or before is None)
    counted = was.model_copy(
        update={
            "passes": was.passes + more if passes else 0,
            "failures": 0 if passes else was.failures + more,
        }
    )
    if passes == was.active:
        return "hold", counted, ""
    wanted, count = (
        (rules.promote_after, counted.passes) if passes else (rules.demote_after, counted.failures)
    )
    dwelt = (now - was.since).total_seconds()
    if rejected or (count >= wanted and dwelt >= (rules.min_dwell or 0)):
        return (
            ("promote" if passes else "demote"),
            HysteresisState(active=passes, since=now, passes=counted.passes, failures=counted.failures),
            "",
        )
    waits = []
    if count < wanted:
        waits.append(f"{count} of {wanted} {'passes' if passes else 'failures'} in a row")
    if dwelt < (rules.min_dwell or 0):
        waits.append(
            f"{format_duration(dwelt)} of {format_duration(rules.min_dwell or 0)} in its present state"
        )
    return "hold", counted, ", ".join(waits)


def in_band(rules: Hysteresis, candidate: Candidate, before: HysteresisState | None) -> list[Violation]:
    """Why a strategy lies outside its band; nothing when it lies inside, or there is none."""
    bands = rules.bands
    if bands is None:
        return []
    active = before is not None and before.active
    limit, word = (bands.exit, "exit") if active else (bands.enter, "enter")
    rule, value = f"bands.{word}: {bands.metric} >= {limit:g}", candidate.metrics.get(bands.metric)
    if value is None:
        return [
            Violation(step="hysteresis", kind="insufficient", rule=rule, detail=f"{bands.metric} is missing")
        ]
    return (
        []
        if value >= limit
        else [Violation(step="hysteresis", kind="failed", rule=rule, detail=f"{bands.metric} is {value:.4g}")]
    )
