"""Compute an acknowledged submission: load the data, compute the nodes, measure the returns.

Inputs are the world's streams, up to the run's `as_of`, or the strategy's own sources. Outputs are cached
under the ComputeKeys of the acknowledgement.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qmtl_sdk.compute.cache import ArrowCache
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.parity import ParityCheck
from qmtl_sdk.contracts.dag import TAG_QUERY
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import Heartbeat, SubmissionAck
from qmtl_sdk.data.bars import Bars, checked, combined, fingerprint, iso
from qmtl_sdk.data.calendars import missing, most_periods_per_year
from qmtl_sdk.data.presets import fingerprint_of, load
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.metrics import measure
from qmtl_sdk.reports.returns import Returns, returns_of

Report = Callable[[Heartbeat], None]


@dataclass
class Computed:
    """The outputs by NodeID, the returns, and the findings that no decision depends on (`precheck`).

    `cross_context_hits`: the nodes for which the cache had an output of another context.
    """

    returns: Returns
    outputs: dict[str, NodeOutput]
    computed: int
    cached: int
    dataset_fingerprint: str
    precheck: dict[str, Any] = field(default_factory=dict)
    cross_context_hits: tuple[str, ...] = ()


def compute_strategy(
    build: BuiltStrategy,
    ack: SubmissionAck,
    cache_root: Path,
    report: Report,
    parity: Literal["sample", "full"] = "sample",
) -> Computed:
    """Compute every node of the strategy and its returns.

    Raises QmtlError: E_DATASET_CHANGED where the data here differs from what the service pinned, and the
    errors of data, engine and returns.
    """
    found = fingerprint_of(ack.bindings) if ack.bindings else None
    if found != ack.context.dataset_fingerprint:
        raise QmtlError(
            "E_DATASET_CHANGED",
            "the data here differs from what the service read when it admitted the submission",
            "submit again; if it persists, both read different files",
            expected=ack.context.dataset_fingerprint,
            received=found,
        )
    cache = ArrowCache(cache_root, ack.context)
    bindings = {binding.node_id: binding for binding in ack.bindings}
    as_of = datetime.fromisoformat(ack.context.as_of) if ack.context.as_of else None
    outputs: dict[str, NodeOutput] = {}
    checks: list[ParityCheck] = []
    own: list[str] = []
    notes: list[str] = []
    unread = computed = cached = 0
    for number, node in enumerate(build.nodes):
        if isinstance(node, StreamInput):
            binding = bindings.get(node.node_id)
            read = None if binding is None else load(binding.preset, binding.stream)
            bars = _bars(node, read, as_of)
            outputs[node.node_id] = NodeOutput(bars)
            if binding is None or read is None:
                own.append(fingerprint({node.node_id: bars}))
                continue
            unread += len(read) - len(bars)
            if count := len(missing(bars, binding.preset.calendar)):
                notes.append(f"{node.label} lacks {count} bars that its calendar expects")
            continue
        if node.node_type == TAG_QUERY or any(
            not len(outputs[parent.node_id].bars) for parent in node.inputs
        ):
            # The service pins no history for a tag query: it and its readers start when the strategy runs.
            outputs[node.node_id] = NodeOutput(Bars(np.empty(0, dtype="int64"), {}, node.interval))
            continue
        target = ack.queue_map.get(node.node_id)  # none where no service has named its ComputeKey
        key = target.compute_key if target is not None and not node.seeded and not own else None

        def progress(node: Node, bar: int, bars: int, number: int = number) -> None:
            report(
                Heartbeat(
                    node=node.label[:200], bar=bar, bars=bars, nodes_done=number, nodes=len(build.nodes)
                )
            )

        known = None if key is None else cache.get(key, node.node_id)
        if known is not None:
            cached += 1
            outputs[node.node_id] = known
            progress(node, len(known.bars), len(known.bars))
            continue
        outputs[node.node_id], check = compute(
            node,
            outputs,
            parity=parity,
            progress=progress,
            checkpoint=None if key is None else cache.checkpoint(key, node.node_id, node.interval),
        )
        computed += 1
        checks.append(check)
        if key is not None:  # the service pins no fingerprint for an own source
            cache.put(key, node.node_id, outputs[node.node_id])
    returns = returns_of(build, outputs, ack.execution, as_of)
    hits = tuple(dict.fromkeys(cache.counters.cross_context_hits))
    if unread:
        notes.append(f"{unread} bars of its streams close after {ack.context.as_of}, and were not read")
    precheck = _precheck(build, ack, returns, checks, notes, len(hits))
    return Computed(returns, outputs, computed, cached, found or combined(own), precheck, hits)


def newest_own_close(build: BuiltStrategy) -> datetime | None:
    """Return the close of the newest bar of the strategy's own sources; None without own sources."""
    ends = [
        int(node.source.read().closes[-1])
        for node in build.nodes
        if isinstance(node, StreamInput) and node.source is not None
    ]
    return datetime.fromisoformat(iso(max(ends))) if ends else None


def _bars(node: StreamInput, bound: Bars | None, as_of: datetime | None) -> Bars:
    if bound is None:
        assert node.source is not None  # the service bound every stream without its own source
        bound = checked(node.source.read(), node.label)
        if bound.interval != node.interval:
            raise QmtlError(
                "E_INTERVAL",
                f"{node.label} has an interval of {node.interval} s, its source one of {bound.interval} s",
                "make them agree",
                node=node.node_id,
            )
    bars = bound.until(as_of)
    if not len(bars):
        raise QmtlError(
            "E_DATA_EMPTY",
            f"{node.label} has no bar that closed by {as_of}",
            "pin a later as_of",
            node=node.node_id,
        )
    fields = node.params.get("fields")
    return bars.only(list(fields)) if fields else bars


def _precheck(
    build: BuiltStrategy,
    ack: SubmissionAck,
    returns: Returns,
    checks: list[ParityCheck],
    notes: list[str],
    cross_context_hits: int,
) -> dict[str, Any]:
    periods = most_periods_per_year(ack.bindings, returns.price_streams, returns.interval)
    metrics = measure(returns, periods)
    reported = [
        f"{check.node} needs more than its period at {check.bar}: {check.detail}; computed bar by bar"
        for check in checks
        if check.verdict == "needs more than its period"
    ]
    reported += [
        f"{name} takes no position at any bar: what it computes may need more bars than its period"
        for name, held in returns.positions.items()
        if not held.any()
    ]
    if returns.carried:
        notes = [*notes, f"{returns.carried} returns are across a missing close, which was carried"]
    return {
        "metrics": metrics,
        "parity": {check.node: check.verdict for check in checks},
        "warnings": [*build.warnings, *reported, *notes],
        "bars": len(returns.values),
        "from": iso(int(returns.ts[0])),
        "to": iso(int(returns.ts[-1])),
        "cross_context_cache_hit": cross_context_hits,
    }
