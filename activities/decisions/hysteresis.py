"""The last step, hysteresis: keep strategies from switching on and off with every judgment.

A strategy enters after `promote_after` passes in a row and leaves after `demote_after` failures in a row,
neither before `min_dwell` in its present state. Passes and failures are those of pieces of evidence, not of
judgments (`HysteresisState.counted`). Hysteresis smooths measurements and never facts: a strategy whose
evidence was rejected, or whose data is stale or too short, leaves at once. A strategy that hysteresis holds
keeps its slot. `HysteresisState` is stored with each decision.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Literal

from activities.decisions.candidate import Candidate, HysteresisState
from activities.decisions.steps import Entry, JudgmentInputs, Shortlist
from qmtl_sdk.contracts.decisions import Violation
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.policy import Hysteresis

Transition = Literal["promote", "demote", "hold"]

# The steps of a judgment that check facts.
_FACTS = ("evidence", "data_currency")


def apply_hysteresis(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Decide which entries are active, and set the hysteresis state of each."""
    # Strategies that were active come first, because they hold their slots; then by today's rank. Those that
    # are self-reported hold none against others.
    order = sorted(
        shortlist.entries,
        key=lambda entry: (
            bool(entry.candidate.self_reported),
            not inputs.was_active(entry.candidate),
            entry.rank if entry.passes and entry.rank is not None else len(shortlist.entries),
            entry.candidate.bound,
            entry.candidate.strategy_id,
        ),
    )
    entries: list[Entry] = []
    slots_taken = 0
    for entry in order:
        settled = _settle(inputs, entry, slots_taken)
        slots_taken += settled.active
        entries.append(settled)
    return replace(shortlist, entries=tuple(entries))


def next_state(
    rules: Hysteresis, before: HysteresisState | None, entry: Entry, now: datetime
) -> tuple[Transition, HysteresisState, str]:
    """Return a strategy's transition, its next state, and what it waits for if it is held."""
    was = before or HysteresisState(since=now)
    passes = entry.passes
    counted = was.counted(entry.candidate, passes)
    if passes == was.active:
        return "hold", counted, ""
    count, required = counted.failures, rules.demote_after
    if passes:
        count, required = counted.passes, rules.promote_after
    min_dwell = rules.min_dwell or 0
    dwelt = (now - was.since).total_seconds()
    by_fact = any(violation.step in _FACTS for violation in entry.violations)
    if by_fact or (count >= required and dwelt >= min_dwell):
        changed = counted.model_copy(update={"active": passes, "since": now})
        return "promote" if passes else "demote", changed, ""
    waits = []
    if count < required:
        waits.append(f"{count} of {required} {'passes' if passes else 'failures'} in a row")
    if dwelt < min_dwell:
        waits.append(f"{format_duration(dwelt)} of {format_duration(min_dwell)} in its present state")
    return "hold", counted, ", ".join(waits)


def band_violations(rules: Hysteresis, candidate: Candidate, active: bool) -> Sequence[Violation]:
    """Return the violation of a strategy outside its band: `exit` if it is `active`, else `enter`."""
    bands = rules.bands
    if bands is None:
        return []
    limit = bands.exit if active else bands.enter
    rule = f"bands.{'exit' if active else 'enter'}: {bands.metric} >= {limit:g}"
    value = candidate.metrics.get(bands.metric)
    if value is None:
        detail = f"{bands.metric} is missing"
        return [Violation(step="bands", kind="insufficient", rule=rule, detail=detail)]
    if value >= limit:
        return []
    return [Violation(step="bands", kind="failed", rule=rule, detail=f"{bands.metric} is {value:.4g}")]


def _settle(inputs: JudgmentInputs, entry: Entry, slots_taken: int) -> Entry:
    """Decide whether an entry is active, with `slots_taken` slots taken by the entries before it."""
    selection, candidate = inputs.policy.selection, entry.candidate
    before = inputs.states.get(candidate.strategy_id)
    transition, state, waits = next_state(selection.hysteresis, before, entry, inputs.now)
    topk = selection.topk
    if transition == "promote" and topk is not None and slots_taken >= topk.total:
        state = state.model_copy(update={"active": False, "since": before.since if before else inputs.now})
        waits = f"all {topk.total} slots are still held"
    settled = replace(entry, active=state.active, state=state)
    if state.active and not entry.passes:
        return settled.violating(_held(selection.hysteresis, waits))
    if not state.active and entry.passes:
        return settled.violating(_waiting(selection.hysteresis, waits))
    return settled


def _held(rules: Hysteresis, waits: str) -> Violation:
    rule = f"demote_after = {rules.demote_after}{_dwell(rules)}"
    return Violation(step="hysteresis", kind="held", rule=rule, detail=f"held for now: {waits}")


def _waiting(rules: Hysteresis, waits: str) -> Violation:
    rule = f"promote_after = {rules.promote_after}{_dwell(rules)}"
    return Violation(step="hysteresis", kind="waiting", rule=rule, detail=f"it passes, and waits: {waits}")


def _dwell(rules: Hysteresis) -> str:
    return f", min_dwell = {format_duration(rules.min_dwell)}" if rules.min_dwell else ""
