"""A world's fence and activations as text."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from api.cli.names import SHORT_ID, StrategyNames
from api.cli.output import table
from qmtl_sdk.contracts.applies import ApplyStatus, FenceStatus
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.domains import Domain, stage_of
from qmtl_sdk.contracts.flattening import Unflattened
from qmtl_sdk.contracts.sessions import SessionHeartbeat, SessionInfo


def fence_text(fence: FenceStatus) -> list[str]:
    """Describe whether a world's orders can pass, and what stops them."""
    refused = ", ".join(
        f"{count} {reason}"
        for reason, count in sorted(fence.orders.items())
        if reason not in ("accepted", "withheld")
    )
    withheld = fence.orders.get("withheld", 0)
    live = "allowed" if fence.allow_live else "not allowed"
    closing = f"flatten    {fence.flattening} strategies are being closed"
    edge = "open" if fence.live_edge else "closed"
    return [
        f"fence      {_fence_state(fence)}, epoch {fence.epoch}",
        *(
            f"halted     {item.text} since {item.since:%Y-%m-%d %H:%M:%S} UTC"
            for item in fence.strategy_halts
        ),
        *([closing] if fence.flattening else []),
        *(f"flatten    {unflattened_text(item)}" for item in fence.unflattened),
        f"live       {live}, edge from backtest to live {edge}",
        f"decision   {_decision_age(fence)}",
        f"orders     {fence.orders.get('accepted', 0)} accepted, {fence.open_orders} open"
        + (f"; {withheld} withheld" if withheld else "")
        + (f"; refused: {refused}" if refused else ""),
    ]


def unflattened_text(item: Unflattened) -> str:
    """Describe a position that a flatten has not closed, and what it waits for or why nobody closes it."""
    held = f"{item.strategy_id[:SHORT_ID]} holds {item.quantity} {item.symbol} in {item.account}"
    return f"{held}: {'waits for ' if item.under_way else ''}{item.waits_for}"


def session_text(item: SessionInfo, fence: FenceStatus | None) -> str:
    """Describe whether a session's orders pass: its own gate, and the world's `fence` where it is known.

    A runner receives a halt or freeze through the relay, and its gate may be open until then.
    """
    if item.ended_at:
        return f"ended: {item.end_reason}"
    gate = f"gate {item.report.gate}" + (f" ({item.report.reason})" if item.report.reason else "")
    closed = _closed_text(fence, item.strategy_id) if fence is not None else ""
    if closed and item.report.gate == "open":
        gate += f", but orders are refused: {closed}"
    return gate + _refused_targets_text(item.report)


def _refused_targets_text(report: SessionHeartbeat) -> str:
    """Say how many targets wait because the fence has refused them: the order log has no row of these."""
    if not report.refused_targets:
        return ""
    targets = "1 target" if report.refused_targets == 1 else f"{report.refused_targets} targets"
    return f"; {targets} refused ({report.target_refusal})"


def _closed_text(fence: FenceStatus, strategy_id: str) -> str:
    """Return why the fence refuses every order of a strategy; empty where it does not."""
    if fence.halted:
        return "the world is halted"
    if any(item.strategy_id == strategy_id for item in fence.strategy_halts):
        return "the strategy is halted"
    return "" if fence.state == "open" else f"the world is {fence.state}"


def rebalancing_text(fence: FenceStatus) -> list[str]:
    """Say what rebalancings have made of a world's weights, and which one holds it."""
    lines = [f"weights    {fence.scale}"] if fence.scale else []
    return lines + ([f"rebalanced by {fence.rebalanced_by}: no apply"] if fence.rebalanced_by else [])


def opening_text(fence: FenceStatus, apply: ApplyStatus | None) -> list[str]:
    """Name the command that lets orders pass again, for a world that is halted or frozen.

    `apply` is the world's newest one.
    """
    world = fence.world_id
    if fence.state == "open" and not fence.halted:
        return []
    if fence.halted or apply is None or apply.outcome is not None:
        return [f"to open it `qmtl world resume {world}`"]
    if any(step.name == "switch" for step in apply.steps):
        return [f"to open it `qmtl up`: apply {apply.run_id} has switched, and goes on by itself"]
    return [f"to open it `qmtl world abort {world} {apply.run_id}`: nothing is switched"]


def data_text(fingerprints: Sequence[str], policy: Mapping[str, Any] | None, applied: str) -> str:
    """Describe which data the evidence was judged on, which the policy pins, and which the last apply used.

    (Any: the policy as JSON.)
    """
    pinned = policy["gating_policy"]["dataset_fingerprint"] if policy else None
    version = f" (policy version {policy['version']})" if policy else ""
    return (
        f"data       judged on {', '.join(fingerprints) or 'nothing yet'}; "
        f"pinned {pinned or 'nothing'}{version}; last applied {applied or 'nothing yet'}"
    )


def activation_text(activation: Sequence[ActivationEnvelope], names: StrategyNames) -> list[Any]:
    """Tabulate who is active in which stage, and sum the weights of each stage. (Any: a rich table.)"""
    if not activation:
        return ["no strategy has been activated"]
    rows = [
        [
            names[item.strategy_id],
            _activation_state(item),
            stage_of(item.effective_mode),
            f"{item.weight:.4g}" if item.active else "",
        ]
        for item in activation
    ]
    sums: defaultdict[str, float] = defaultdict(float)
    for item in activation:
        if item.active:
            sums[stage_of(item.effective_mode)] += item.weight
    total = ", ".join(f"{stage} {weight:.4g}" for stage, weight in sorted(sums.items()))
    lines: list[Any] = [table(["strategy", "activation", "stage", "weight"], rows)]
    if sums:
        lines.append(
            f"sum of the weights by stage: {total} (parts of the world's capital; backtest trades nothing)"
        )
    return lines


def runners_text(
    activation: Sequence[ActivationEnvelope], sessions: Sequence[SessionInfo], names: StrategyNames
) -> list[str]:
    """Say how many sessions run, and name each strategy that is active in dryrun or live without one."""
    running = {(item.strategy_id, item.execution_domain) for item in sessions}
    lines = [f"sessions   {len(sessions)} running"]
    for item in activation:
        trades = item.active and item.execution_domain in (Domain.DRYRUN, Domain.LIVE)
        if trades and (item.strategy_id, item.execution_domain) not in running:
            stage = stage_of(item.effective_mode)
            lines.append(f"no runner  {names[item.strategy_id]} is active in {stage}, and no session runs it")
    return lines


def _activation_state(item: ActivationEnvelope) -> str:
    state = "active" if item.active else "not active"
    return f"{state}, halted" if item.halted else state


def _fence_state(fence: FenceStatus) -> str:
    if fence.halted:
        return f"halted ({fence.halted})"
    return "open" if fence.state == "open" else f"{fence.state} by {fence.held_by}"


def _decision_age(fence: FenceStatus) -> str:
    until = fence.decision_fresh_until
    if until is None:
        return "none yet"
    if until > datetime.now(UTC):
        return f"fresh until {until:%H:%M:%S} UTC"
    return (
        f"stale since {until:%Y-%m-%d %H:%M:%S} UTC: orders are refused; qmtl world decide {fence.world_id}"
    )
