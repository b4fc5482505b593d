"""Nodes computed in every way that the engine has, and bars of a simulated venue."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

import numpy as np

from qmtl_sdk import Node, StreamInput
from qmtl_sdk.brokerage.fills import MarketBar
from qmtl_sdk.compute.live import LiveEngine
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.plan import NodePlan
from qmtl_sdk.contracts.dag import upstream
from qmtl_sdk.data.bars import NS, Bars
from tests.support.frames import START

MINUTE = 60


def ohlcv(close: Sequence[float], interval: int = MINUTE, start: int = START) -> Bars:
    """Bars that open at the last close and reach one percent beyond both, with a volume of 1000."""
    closes = np.asarray(close, dtype=float)
    opens = np.concatenate([closes[:1], closes[:-1]])
    columns = {
        "open": opens,
        "high": np.fmax(opens, closes) * 1.01,
        "low": np.fmin(opens, closes) * 0.99,
        "close": closes,
        "volume": np.full(len(closes), 1000.0),
    }
    return Bars(start + np.arange(len(closes)) * interval * NS, columns, interval)


def market_bar(at: int, prices: str, volume: str | None = None) -> MarketBar:
    """A bar that opens `at` minutes after 1970; `prices`: open, high, low, close."""
    values = [None if text == "-" else Decimal(text) for text in prices.split()]
    return MarketBar(at * MINUTE * NS, *values, None if volume is None else Decimal(volume))


def computed(nodes: Sequence[Node], streams: Mapping[str, Bars]) -> dict[str, NodeOutput]:
    """Compute nodes and all that they read: in batch, bar by bar and live, which must agree to the last bit.

    `streams`: the bars of each StreamInput, by NodeID.
    """
    order = upstream(nodes, lambda node: node.inputs)
    outputs: dict[str, NodeOutput] = {}
    for node in order:
        if isinstance(node, StreamInput):
            outputs[node.node_id] = NodeOutput(streams[node.node_id])
            continue
        plan = NodePlan(node, outputs)
        rows = [plan.compute_bar(t) for t in range(plan.first, len(plan.ts))]
        columns = {
            name: np.concatenate([np.full(plan.first, np.nan), [row[name] for row in rows]])
            for row in rows[:1]
            for name in row
        }
        batch = plan.compute_range(plan.origin, len(plan.ts)) if plan.aligned else None
        for name, values in (batch or {}).items():
            at = plan.first - plan.origin
            np.testing.assert_array_equal(values[at:], columns[name][plan.first :], f"{node.label}.{name}")
        outputs[node.node_id] = plan.output(columns)
    _same_live(order, streams, outputs)
    return outputs


def _same_live(order: Sequence[Node], streams: Mapping[str, Bars], outputs: Mapping[str, NodeOutput]) -> None:
    engine = LiveEngine(list(order))
    closes = sorted({int(close) for bars in streams.values() for close in bars.closes})
    found: dict[str, dict[int, dict[str, float]]] = {node.node_id: {} for node in order}
    for close in closes:
        bars = {
            node_id: (int(data.ts[row]), {name: float(column[row]) for name, column in data.columns.items()})
            for node_id, data in streams.items()
            for row in np.flatnonzero(data.closes == close)
        }
        for output in engine.advance(close, bars):
            assert output.fault is None, output.fault
            found[output.node.node_id][output.ts] = output.values
    for node in order:
        output = outputs[node.node_id]
        for row in range(output.first, len(output.bars)):
            if not isinstance(node, StreamInput):
                expected = {name: float(values[row]) for name, values in output.bars.columns.items()}
                np.testing.assert_equal(found[node.node_id][int(output.bars.ts[row])], expected, node.label)
