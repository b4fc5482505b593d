"""When a node computes over history, and which bars of its inputs it reads each time."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from qmtl_sdk.compute.faults import author_error
from qmtl_sdk.compute.output import VALUE, Columns, NodeOutput, columns_of, last_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS, Bars
from qmtl_sdk.nodes.node import Node
from qmtl_sdk.nodes.view import CacheView, Window, read_only


class NodePlan:
    """A node's bars over history, and the windows over its inputs.

    `ts`: opening times of the node's bars, int64 ns. `ends[input][t]`: how many of the input's bars have
    closed when the node's bar `t` closes. `aligned`: whether all inputs have the node's own times. `first`:
    the first bar at which the node computes; `origin`: the first bar at which no input is in its warm-up.

    Raises QmtlError: E_INTERVAL where all inputs are coarser than the node, E_HISTORY_SHORT where the inputs
    never have enough bars.
    """

    def __init__(self, node: Node, inputs: Mapping[str, NodeOutput]) -> None:
        self.node = node
        self.inputs = {parent.node_id: (parent, _read_only(inputs[parent.node_id])) for parent in node.inputs}
        outputs = [output for _, output in self.inputs.values()]
        self.ts = _opening_times(node, [output.bars for output in outputs])
        closes = self.ts + node.interval * NS
        self.ends = {
            node_id: np.searchsorted(output.bars.closes, closes, side="right")
            for node_id, (_, output) in self.inputs.items()
        }
        self.aligned = all(
            len(output.bars) == len(self.ts) and np.array_equal(output.bars.ts, self.ts) for output in outputs
        )
        self.origin = max((output.first for output in outputs), default=0)
        self.first = 0
        for node_id, (_, output) in self.inputs.items():
            ready = int(np.searchsorted(self.ends[node_id], output.first + node.period))
            self.first = max(self.first, ready)
        if self.first >= len(self.ts):
            longest = max(self.inputs.values(), key=lambda pair: pair[1].first)[0].label
            raise QmtlError(
                "E_HISTORY_SHORT",
                f"{node.label} needs {node.period} bars of {longest}; fewer are left after its warm-up",
                "use a shorter period, or a world with more history",
                node=node.node_id,
            )

    def compute_range(self, lo: int, hi: int) -> Columns | None:
        """Call the function once for bars `lo` to `hi`; return None if the result is not one value a bar."""
        view = CacheView(
            {node_id: _window(parent, output, lo, hi) for node_id, (parent, output) in self.inputs.items()}
        )
        return columns_of(self._call(view), self.ts[lo:hi], self.node.label)

    def compute_bar(self, t: int) -> dict[str, float]:
        """Call the function for bar `t`, with the last `period` bars of each input that have closed by then.

        Raises QmtlError: E_COMPUTE_FAILED where the function raises, and as `last_row`.
        """
        windows = {}
        for node_id, (parent, output) in self.inputs.items():
            end = int(self.ends[node_id][t])
            windows[node_id] = _window(parent, output, max(0, end - self.node.period), end)
        try:
            return last_row(self._call(CacheView(windows)), int(self.ts[t]), self.node.label)
        except QmtlError:
            raise
        except Exception as error:  # the author's function may raise anything
            raise author_error(self.node, t, int(self.ts[t]), error) from error

    def output(self, columns: Columns) -> NodeOutput:
        """Return the columns as the node's output, with warm-up rows missing."""
        copies = {name: values.copy() for name, values in columns.items()}
        if not copies:
            copies = {VALUE: np.full(len(self.ts), np.nan)}
        for values in copies.values():
            values[: self.first] = np.nan
        return NodeOutput(Bars(self.ts, copies, self.node.interval), self.first)

    def _call(self, view: CacheView) -> Any:
        assert self.node.compute_fn is not None  # BuiltStrategy refuses a node without one
        with np.errstate(all="ignore"):
            return self.node.compute_fn(view)


def _read_only(output: NodeOutput) -> NodeOutput:
    """Return the output without the right to write to it: windows are slices of it."""
    bars = output.bars
    columns = {name: read_only(values) for name, values in bars.columns.items()}
    return NodeOutput(Bars(read_only(bars.ts), columns, bars.interval), output.first)


def _window(parent: Node, output: NodeOutput, lo: int, hi: int) -> Window:
    return Window(
        parent.node_id,
        parent.label,
        parent.interval,
        output.bars.ts[lo:hi],
        {name: values[lo:hi] for name, values in output.bars.columns.items()},
    )


def _opening_times(node: Node, inputs: list[Bars]) -> np.ndarray:
    """Return the opening times of the node's bars.

    These are the bars of the inputs that have the node's own interval; without such an input, the whole
    intervals that finer inputs fill.
    """
    own = [bars.ts for bars in inputs if bars.interval == node.interval]
    if own:
        same = all(np.array_equal(own[0], other) for other in own[1:])
        return own[0] if same else np.unique(np.concatenate(own))
    finer = [bars for bars in inputs if bars.interval < node.interval]
    if not finer:
        raise QmtlError(
            "E_INTERVAL",
            f"{node.label} has an interval of {node.interval} s, finer than all of its inputs",
            "give it the interval of its finest input",
            node=node.node_id,
        )
    step = node.interval * NS
    opened = np.unique(np.concatenate([bars.ts // step * step for bars in finer]))
    return opened[opened + step <= max(int(bars.closes[-1]) for bars in finer)]
