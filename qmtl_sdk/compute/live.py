"""Computes a DAG of nodes as bars close, one after the other, in memory that does not grow.

1. Each node's output is a `Series`: its last rows, as many as the longest period of a reader.
2. `advance` takes the bars that close at one time. Earlier times at which a coarser node's bar ended are
   computed first, in order.
3. At each time, nodes compute in the order of the DAG. A node computes when an input of its own interval has
   a bar that closes now, or, if all inputs are finer, when a whole interval that they fill has ended. It
   reads the last `period` bars of each input that have closed by now.
4. It computes once every input has `period` values that are not warm-up; before that its row is missing.

The results equal those of `engine` for the same bars: a run that begins with a batch's outputs continues
where they ended.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from qmtl_sdk.compute.faults import author_error
from qmtl_sdk.compute.output import NodeOutput, last_row
from qmtl_sdk.compute.series import NEVER, Row, Series, window_hash
from qmtl_sdk.contracts.dag import TAG_QUERY
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.view import CacheView, Window


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One row of a node's output.

    `window` is the hash of its inputs; `fault` is set where the function failed.
    """

    node: Node
    ts: int
    values: dict[str, float]
    window: str
    fault: QmtlError | None = None


class LiveEngine:
    """Computes `nodes`, given in the order of computation, bar by bar.

    `outputs`: batch outputs to continue from, by NodeID. `now`: the newest close that was computed, in ns.
    `late`: how many bars were dropped because a bar of the same or a later time was there already.
    """

    def __init__(self, nodes: "list[Node]", outputs: Mapping[str, NodeOutput] | None = None) -> None:
        self.now = NEVER
        self.late = 0
        self._nodes = nodes
        self._by_id = {node.node_id: node for node in nodes}
        rows = dict.fromkeys(self._by_id, 1)
        for node in nodes:
            for parent in node.inputs:
                rows[parent.node_id] = max(rows[parent.node_id], node.period)
        self._series = {
            node.node_id: Series(node.node_id, node.label, node.interval, rows[node.node_id])
            for node in nodes
        }
        self._upstreams: dict[str, dict[str, Series]] = {
            node.node_id: {} for node in nodes if node.node_type == TAG_QUERY
        }
        self._open: dict[str, list[int]] = {node.node_id: [] for node in nodes if _is_coarser(node)}
        for node in nodes:
            output = (outputs or {}).get(node.node_id)
            if output is not None:
                self._series[node.node_id].seed(output)
                self.now = max(self.now, self._series[node.node_id].last_close)
        if outputs:
            for node_id in self._open:
                self._reopen(self._by_id[node_id], outputs)

    @property
    def tag_queries(self) -> list[Node]:
        return [node for node in self._nodes if node.node_id in self._upstreams]

    @property
    def resident_bytes(self) -> int:
        """The size of the rows that its nodes retain, in bytes."""
        upstreams = [series for found in self._upstreams.values() for series in list(found.values())]
        return sum(series.resident_bytes for series in (*self._series.values(), *upstreams))

    def upstreams(self, query: Node) -> list[str]:
        """Return the NodeIDs that a tag query reads now."""
        return sorted(self._upstreams[query.node_id])

    def add_upstream(self, query: Node, node_id: str, label: str, rows: "list[Row]") -> None:
        """Let a tag query read another node's output from now on, with its newest rows.

        Its NodeID stays the same.
        """
        series = Series(node_id, label, query.interval, query.period)
        for ts, values in rows:
            series.append(ts, values)
        self._upstreams[query.node_id][node_id] = series

    def remove_upstream(self, query: Node, node_id: str) -> None:
        self._upstreams[query.node_id].pop(node_id, None)

    def advance(
        self, close: int, bars: Mapping[str, Row], tagged: "Mapping[str, Mapping[str, Row]] | None" = None
    ) -> Iterator[OutputRow]:
        """Compute with the bars that close at `close` (ns), and yield the rows of all nodes in order.

        `bars`: by StreamInput; `tagged`: by tag query and upstream. Bars of the past are counted in `late`
        and dropped.
        """
        ends = {
            start + self._series[node_id].interval * NS
            for node_id, starts in self._open.items()
            for start in starts
        }
        for moment in sorted(end for end in ends if end < close):
            yield from self._compute_due(moment, set())
        changed: set[str] = set()
        for node_id, row in bars.items():
            series = self._series[node_id]
            if self._append(series, row):
                series.first = 0
                changed.add(node_id)
        for query_id, rows in (tagged or {}).items():
            for node_id, row in rows.items():
                # A row that comes after the query computed its bar is read with the next bar.
                if (
                    self._append(self._upstreams[query_id][node_id], row)
                    and close > self._series[query_id].last_close
                ):
                    changed.add(query_id)
        yield from self._compute_due(close, changed)

    def _append(self, series: Series, row: Row) -> bool:
        ts, values = row
        if ts + series.interval * NS <= series.last_close:
            self.late += 1
            return False
        series.append(ts, values)
        return True

    def _compute_due(self, close: int, changed: set[str]) -> Iterator[OutputRow]:
        """Compute every node with a bar that ends at `close`. `changed`: NodeIDs that have a new row."""
        self.now = max(self.now, close)
        for node in self._nodes:
            if not isinstance(node, StreamInput):
                for ts in self._due(node, changed, close):
                    output = self._compute(node, ts)
                    self._series[node.node_id].append(ts, output.values)
                    changed.add(node.node_id)
                    yield output
            if node.node_id in changed:
                self._open_readers(node, int(close - node.interval * NS))

    def _open_readers(self, node: Node, ts: int) -> None:
        """Note, for each coarser reader of `node`, the reader's bar that the bar at `ts` falls into."""
        for reader_id, starts in self._open.items():
            reader = self._by_id[reader_id]
            step = reader.interval * NS
            start = ts // step * step
            if (
                node.interval < reader.interval
                and any(parent.node_id == node.node_id for parent in reader.inputs)
                and (not starts or start > starts[-1])
                and start + step > self._series[reader_id].last_close
            ):
                starts.append(start)

    def _due(self, node: Node, changed: set[str], close: int) -> list[int]:
        """Return the opening times of the node's bars that end by `close`."""
        latest = [close - node.interval * NS]
        if node.node_id in self._upstreams:
            return latest if node.node_id in changed else []
        if node.node_id in self._open:
            starts = self._open[node.node_id]
            due = [start for start in starts if start + node.interval * NS <= close]
            del starts[: len(due)]
            return due
        if close <= self._series[node.node_id].last_close:
            return []
        has_bar = any(
            parent.node_id in changed and parent.interval == node.interval for parent in node.inputs
        )
        return latest if has_bar else []

    def _compute(self, node: Node, ts: int) -> OutputRow:
        """Compute the node's bar that opens at `ts`."""
        if node.node_id in self._upstreams:
            inputs = self._upstreams[node.node_id]
            ready = True
        else:
            inputs = {parent.node_id: self._series[parent.node_id] for parent in node.inputs}
            ready = all(
                series.first is not None and series.total >= series.first + node.period
                for series in inputs.values()
            )
        if not ready:
            return OutputRow(node, ts, {}, "")
        series = self._series[node.node_id]
        if series.first is None:
            series.first = series.total
        windows = {node_id: found.window(node.period) for node_id, found in inputs.items()}
        hashed = window_hash(windows)
        try:
            values = _call(node, windows, ts)
        except QmtlError as error:
            return OutputRow(node, ts, {}, hashed, error)
        except Exception as error:  # the author's function may raise anything
            return OutputRow(node, ts, {}, hashed, author_error(node, series.total, ts, error))
        return OutputRow(node, ts, values, hashed)

    def _reopen(self, node: Node, outputs: Mapping[str, NodeOutput]) -> None:
        """Note the node's bars that were unfinished where the batch outputs ended."""
        step = node.interval * NS
        finer = [
            outputs[parent.node_id].bars.ts
            for parent in node.inputs
            if parent.interval < node.interval and parent.node_id in outputs
        ]
        starts = {int(start) for ts in finer for start in np.unique(ts // step * step)}
        last_close = self._series[node.node_id].last_close
        self._open[node.node_id] = sorted(start for start in starts if start + step > last_close)


def _is_coarser(node: Node) -> bool:
    """Return whether no input has the node's own interval, so that its bars end without a bar of an input."""
    return bool(node.inputs) and all(parent.interval != node.interval for parent in node.inputs)


def _call(node: Node, windows: Mapping[str, Window], ts: int) -> dict[str, float]:
    """Call the node's function. A tag query without one passes on the newest value of each column."""
    if node.compute_fn is None:
        return {
            f"{found.label}.{name}": float(column[-1])
            for found in windows.values()
            for name, column in found.columns.items()
            if len(column)
        }
    with np.errstate(all="ignore"):
        return last_row(node.compute_fn(CacheView(dict(windows))), ts, node.label)
