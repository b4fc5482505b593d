"""Worlds and decisions as text."""

import json
from collections.abc import Sequence
from typing import Any

from api.cli.output import table
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.domains import stage_of
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.policy_text import Difference
from qmtl_sdk.contracts.worlds import World

# What the report on a stream counts, as people read it.
_ODD = {
    "missing": "missing",
    "blank": "without a close",
    "not_positive": "with a close of 0 or less",
    "off_session": "while the market is closed",
    "split_like": "with a jump like a split's",
    "after_clock": "after the world's clock, which it does not see yet",
}


def decision_table(decision: DecisionEnvelope) -> Any:
    """Tabulate what was decided about each strategy, and why. (Any: a rich table.)"""
    rows = [
        [
            item.label,
            "active" if item.active else "not active",
            str(item.rank or ""),
            f"{item.weight:.3g}" if item.active else "",
            f"{item.score:.4g}" if item.score is not None else "",
            reasons(item) or "passed every gate",
        ]
        for item in decision.strategies
    ]
    title = (
        f"{decision.world_id}: {decision.reason} (policy version {decision.policy_version}, "
        f"furthest stage {stage_of(decision.effective_mode)}, world time {decision.as_of:%Y-%m-%d %H:%M} UTC)"
    )
    return table(["strategy", "decision", "rank", "weight", "score", "why"], rows, title)


def changes_table(world: str, changes: Sequence[Difference]) -> Any:
    """Tabulate what a change of a world's spec changes. (Any: a rich table.)"""
    rows = [[item.key, _value(item.before), _value(item.after)] for item in changes]
    return table(["key", "now", "then"], rows, f"changes of {world}")


def _value(value: Any) -> str:
    """Return a value of a spec as text. (Any: JSON.)"""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def reasons(item: StrategyDecision) -> str:
    """Return the rules that left a strategy out, with their figures; empty where none did."""
    return "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations)


def created_text(created: dict[str, Any]) -> list[str]:
    """Describe a new world and the data that was found for it. (Any: the Gateway's JSON.)"""
    world = World.model_validate(created["world"])
    policy = f"policy version {world.policy_version or 'none yet'}"
    lines = [f"world {world.spec.world} ({world.spec.clock.kind} clock, {policy})"]
    for name, report in created["data"].items():
        for stream, facts in report["streams"].items():
            period = f"{facts['first'][:10]} to {facts['last'][:10]}"
            odd = "".join(f", {facts[key]} {text}" for key, text in _ODD.items() if facts[key])
            lines.append(f"  {name}/{stream}: {facts['bars']} bars, {period}{odd}")
            if facts["split_like"]:
                at = ", ".join(time[:16] for time in facts["split_like_at"])
                lines.append(f"    jumps as a split makes them at {at}: is the price adjusted?")
    return lines


def world_text(world: World, policy: dict[str, Any] | None, decisions: list[DecisionEnvelope]) -> list[Any]:
    """Describe a world, its default policy and its newest decision. (Any: JSON in, rich tables out.)"""
    spec = world.spec
    replay = spec.clock.replay
    clock = f"replay from {replay.start:%Y-%m-%d %H:%M} UTC at speed {replay.speed:g}" if replay else "wall"
    lines: list[Any] = [f"world {spec.world}{f': {spec.description}' if spec.description else ''}"]
    lines.append(f"clock     {clock}")
    for preset in spec.data.presets:
        what = f"{preset.source} at {format_duration(preset.interval)}, {preset.calendar}"
        lines.append(f"data      {preset.name}: {what}: {', '.join(preset.streams)}")
    lines.append(
        f"policy    version {policy['version']}: {policy['selection']}" if policy else "policy    none yet"
    )
    return [*lines, decision_table(decisions[0]) if decisions else "decision  none yet"]
