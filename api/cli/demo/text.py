"""The demo's result as text."""

from decimal import Decimal
from typing import Any

from api.cli.output import table
from api.cli.text.worlds import decision_table
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.runtime.result import SubmitResult

METRICS = ("sharpe", "max_drawdown", "trades", "sample_days", "total_return")
"""The metrics that the demo prints of each strategy."""


def demo_text(
    results: list[SubmitResult], resubmission: SubmitResult, decision: DecisionEnvelope, body: dict[str, Any]
) -> list[Any]:
    """Describe all parts of the demo. `body`: the same as JSON. (Any: rich tables.)"""
    lines: list[Any] = ["", decision_table(decision), ""]
    for result in results:
        lines += _submission(result, "")
    lines += _submission(resubmission, " (submitted again)")
    return [
        *lines,
        "",
        *_streaming(body["stream"]),
        "",
        *_trading(body),
        "",
        *_rebalancing(body["rebalancing"]),
        "",
        f"Report       {body['report']}",
        f"Temporal UI  {body['temporal_ui']}",
        "Everything keeps running until `qmtl down`.",
    ]


def _submission(result: SubmitResult, note: str) -> list[str]:
    counts = result.nodes
    metrics = ", ".join(
        f"{name} {value:.4g}" for name in METRICS if (value := result.metrics.get(name)) is not None
    )
    return [
        f"{result.name}{note}: {metrics}",
        f"  nodes: {counts.new} new, {counts.reused} reused in the graph; "
        f"{counts.computed} computed, {counts.cached} from the cache; {result.seconds:.1f} s",
        f"  {result.ui_url}",
    ]


def _streaming(found: dict[str, Any]) -> list[str]:
    query = found["tag_query"]
    events = sum(found["events_by_type"].values())
    node_id = "unchanged" if query["node_id_unchanged"] else "CHANGED"
    return [
        f"Running in {found['world']}: {found['bars']} bars of replayed time, gate {found['gate']}",
        f"  received {events} events, p95 {found['delivery_p95_ms']} ms after they were written; "
        f"the socket was cut {found['reconnects']} time(s), largest gap {found['max_gap']}",
        f"  a tag query found a new queue while it ran: {query['queues_before']} → {query['queues_after']}, "
        f"its NodeID {node_id}",
    ]


def _trading(body: dict[str, Any]) -> list[str]:
    trading, live, orders = body["trading"], body["apply"], body["orders"]
    steps = ", ".join(step["name"] for step in live["steps"])
    people = " and ".join(item["actor"] for item in live["approvals"])
    during = orders["during"] or "none"
    held = ", ".join(
        f"{item['quantity']} {item['symbol']} ({item['account']})" for item in trading["positions"]
    )
    return [
        f"Trading in {trading['world']}: judged, promoted to dryrun and to live (on paper), rolled back",
        f"  apply {live['run_id']}: {steps}; approved by {people}; "
        f"epoch {live['epoch_before']} → {live['epoch_after']}",
        f"  orders before {orders['before']}, during {during}, after {orders['after']}; "
        f"{orders['filled']} filled",
        f"  holds {held or 'nothing'} at the end; audit trail of {trading['audit_entries']} entries verified",
    ]


def _rebalancing(found: dict[str, Any]) -> list[Any]:
    shares = ", ".join(
        f"{world} {share['before']} → {share['after']}" for world, share in found["worlds"].items()
    )
    rows = [
        [
            item["world_id"],
            item["symbol"],
            *(f"{Decimal(item[name]):f}" for name in ("from_quantity", "to_quantity", "quantity")),
            f"{Decimal(item['notional']):.2f}",
            f"{Decimal(item['cost']):.2f}",
        ]
        for item in found["deltas"]
    ]
    balanced = "balanced" if found["ledger_balanced"] else "NOT BALANCED"
    return [
        f"Rebalancing {found['run_id']}: {shares}; approved by ana; {found['outcome']}",
        table(["world", "symbol", "from", "to", "delta", "notional", "cost"], rows),
        f"  {found['fills']} of {found['orders']} orders filled, {found['crossed']} crossings without an "
        f"order, {len(found['dropped'])} dropped; within {found['largest_gap_in_lots']} of a lot of the "
        f"targets; the ledger is {balanced}",
    ]
