"""The steps that check each candidate by itself: evidence, data currency, gates and hysteresis bands.

Rejected evidence ends the checks of a candidate. Otherwise every failed check is reported, not only the
first.
"""

from collections.abc import Mapping

from activities.decisions.candidate import Candidate
from activities.decisions.hysteresis import band_violations
from activities.decisions.steps import Entry, JudgmentInputs, Shortlist
from qmtl_sdk.contracts.decisions import Violation
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.expressions import evaluate, metrics_in, parse
from qmtl_sdk.contracts.policy import Gates


def check_evidence(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out candidates whose evidence was rejected."""

    def check(entry: Entry) -> Entry:
        candidate = entry.candidate
        if not candidate.error_code:
            return entry
        return entry.violating(
            Violation(step="evidence", kind="rejected", rule=candidate.error_code, detail=candidate.error)
        )

    return shortlist.each(check)


def check_data_currency(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out candidates whose data is too old or too short."""

    def check(entry: Entry) -> Entry:
        if entry.candidate.error_code:
            return entry
        return entry.violating(*_lag(inputs, entry.candidate), *_history(inputs, entry.candidate))

    return shortlist.each(check)


def check_gates(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out candidates that fail the policy's gates."""
    gates = inputs.policy.selection.gates

    def check(entry: Entry) -> Entry:
        if entry.candidate.error_code:
            return entry
        return entry.violating(*_group_violations(gates, entry.candidate.metrics))

    return shortlist.each(check)


def check_bands(inputs: JudgmentInputs, shortlist: Shortlist) -> Shortlist:
    """Leave out candidates outside the bands of hysteresis."""
    rules = inputs.policy.selection.hysteresis

    def check(entry: Entry) -> Entry:
        candidate = entry.candidate
        if candidate.error_code:
            return entry
        return entry.violating(*band_violations(rules, candidate, inputs.was_active(candidate)))

    return shortlist.each(check)


def figures(rule: str, metrics: Mapping[str, float | None]) -> str:
    """Format the values of the metrics in a rule: `sharpe is 0.31`.

    Of returns that are all 0 most metrics are missing, so the reason is given with them.
    """
    values = [(name, metrics.get(name)) for name in metrics_in(parse(rule))]
    is_idle = metrics.get("trades") == 0 and any(value is None for _, value in values)
    return ", ".join(
        f"{name} is {'missing' if value is None else format(value, '.4g')}" for name, value in values
    ) + (": it took no position at any bar" if is_idle else "")


def _lag(inputs: JudgmentInputs, candidate: Candidate) -> list[Violation]:
    limit = inputs.policy.data_currency.max_lag
    if limit is None:
        return []
    rule = f"max_lag = {format_duration(limit)}"
    last = candidate.data_until
    if last is None:
        detail = "the time of the newest bar is not known"
        return [Violation(step="data_currency", kind="insufficient", rule=rule, detail=detail)]
    lag = (inputs.now - last).total_seconds()
    if lag <= limit:
        return []
    detail = f"the newest bar closed {format_duration(lag)} ago, at {last.isoformat()}"
    return [Violation(step="data_currency", kind="stale", rule=rule, detail=detail)]


def _history(inputs: JudgmentInputs, candidate: Candidate) -> list[Violation]:
    limit = inputs.policy.data_currency.min_history
    if limit is None:
        return []
    rule = f"min_history = {format_duration(limit)}"
    if candidate.data_first is None or candidate.data_last is None:
        detail = "the range of the data is not known"
        return [Violation(step="data_currency", kind="insufficient", rule=rule, detail=detail)]
    span = (candidate.data_last - candidate.data_first).total_seconds()
    if span >= limit:
        return []
    detail = f"the data reaches back {format_duration(span)}"
    return [Violation(step="data_currency", kind="short_history", rule=rule, detail=detail)]


def _group_violations(gates: Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    """Return the violations of a group of gates; of alternatives, those of all, unless one holds."""
    if not gates.any_of:
        return [item for gate in gates.all_of for item in _gate_violations(gate, metrics)]
    alternatives = [_gate_violations(gate, metrics) for gate in gates.any_of]
    if not all(alternatives):
        return []
    return [item for violations in alternatives for item in violations]


def _gate_violations(gate: str | Gates, metrics: Mapping[str, float | None]) -> list[Violation]:
    if isinstance(gate, Gates):
        return _group_violations(gate, metrics)
    holds = evaluate(parse(gate), metrics)
    if holds:
        return []
    kind = "insufficient" if holds is None else "failed"
    return [Violation(step="gates", kind=kind, rule=gate, detail=figures(gate, metrics))]
