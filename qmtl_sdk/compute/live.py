"""Computes a DAG of nodes as bars close, one after the other, in memory that does not grow.

1. Each node's output is a series: its last rows in a buffer, as many as any reader's period asks for, and how many rows there were in all.
2. `advance` takes the bars that close at one time. Times before it at which a coarser node's own bar ended are gone through first, in order.
3. At each time, nodes are asked in the order of the DAG: a node ticks when an input of its own interval has a bar that closes now, or, having only finer
   inputs, when a whole interval that they fill has ended. It sees the last `period` bars of each input that have closed by now.
4. It is asked once every input has `period` values that are not warm-up; before that its row is missing.

That is what the batch engine says of the same bars (`engine`): a run that begins from a batch's tapes goes on where they ended.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from blake3 import blake3

from qmtl_sdk.compute.engine import NodeOutput, author_error
from qmtl_sdk.compute.output import last_row
from qmtl_sdk.contracts.dag import TAG_QUERY
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.view import CacheView, Window

Row = tuple[int, dict[str, float]]
"""Opening time in ns, and the values by column."""


@dataclass(frozen=True, slots=True)
class Output:
    """A row that a node has put out. `window` is the hash of what it saw; `fault` says why there is no value where its function failed."""

    node: Node
    ts: int
    values: dict[str, float]
    window: str
    fault: QmtlError | None = None


class Series:
    """The last `keep` rows of a node's output, in buffers that are filled from the left and moved when they are full."""

    def __init__(self, node_id: str, label: str, interval: int, keep: int) -> None:
        self.node_id, self.label, self.interval, self._keep = node_id, label, interval, max(1, keep)
        self._size = max(256, 4 * self._keep)
        self._ts = np.empty(self._size, dtype="int64")
        self._columns: dict[str, np.ndarray] = {}
        self._rows = 0
        self.total = 0
        self.first: int | None = None

    @property
    def last_close(self) -> int:
        """When the newest row closed, ns; -2**63 for a series without rows."""
        return int(self._ts[self._rows - 1]) + self.interval * NS if self._rows else -(2**63)

    def seed(self, tape: NodeOutput) -> None:
        """Go on from a batch's output."""
        count = min(len(tape.bars), self._size // 2)
        self._ts[:count] = tape.bars.ts[len(tape.bars) - count :]
        for name, values in tape.bars.columns.items():
            self._column(name)[:count] = values[len(values) - count :]
        self._rows, self.total, self.first = count, len(tape.bars), tape.first if len(tape.bars) else None

    def append(self, ts: int, values: Mapping[str, float]) -> None:
        if self._rows == self._size:
            start = self._size - self._keep
            self._ts[: self._keep] = self._ts[start:]
            for column in self._columns.values():
                column[: self._keep] = column[start:]
            self._rows = self._keep
        row = self._rows
        self._ts[row] = ts
        for name in values:
            self._column(name)
        for name, column in self._columns.items():
            column[row] = values.get(name, np.nan)
        self._rows, self.total = row + 1, self.total + 1

    def window(self, period: int) -> Window:
        lo, hi = max(0, self._rows - period), self._rows
        return Window(
            self.node_id,
            self.label,
            self.interval,
            self._ts[lo:hi],
            {name: column[lo:hi] for name, column in self._columns.items()},
        )

    def _column(self, name: str) -> np.ndarray:
        if name not in self._columns:
            self._columns[name] = np.full(self._size, np.nan)
        return self._columns[name]


class LiveEngine:
    """`nodes` in the order of computation. `tapes`: outputs to go on from, by NodeID."""

    def __init__(self, nodes: "list[Node]", tapes: Mapping[str, NodeOutput] | None = None) -> None:
        self._nodes, self._by_id = nodes, {node.node_id: node for node in nodes}
        keep = {node.node_id: 1 for node in nodes}
        for node in nodes:
            for parent in node.inputs:
                keep[parent.node_id] = max(keep[parent.node_id], node.period)
        self._series = {
            node.node_id: Series(node.node_id, node.label, node.interval, keep[node.node_id])
            for node in nodes
        }
        self._tagged: dict[str, dict[str, Series]] = {
            node.node_id: {} for node in nodes if node.node_type == TAG_QUERY
        }
        self._open: dict[str, list[int]] = {node.node_id: [] for node in nodes if self._coarse(node)}
        self.now = -(2**63)
        self.late = 0
        for node in nodes:
            tape = (tapes or {}).get(node.node_id)
            if tape is not None:
                self._series[node.node_id].seed(tape)
                self.now = max(self.now, self._series[node.node_id].last_close)
        for node in nodes:
            if node.node_id in self._open and tapes:
                self._reopen(node, tapes)

    @property
    def tag_queries(self) -> list[Node]:
        return [node for node in self._nodes if node.node_id in self._tagged]

    def upstreams(self, query: Node) -> list[str]:
        """The NodeIDs that a tag query reads now."""
        return sorted(self._tagged[query.node_id])

    def take_in(self, query: Node, node_id: str, label: str, rows: "list[Row]") -> None:
        """Let a tag query read another node's output from now on, with its newest rows. Its NodeID stays what it is."""
        series = Series(node_id, label, query.interval, query.period)
        for ts, values in rows:
            series.append(ts, values)
        self._tagged[query.node_id][node_id] = series

    def leave_out(self, query: Node, node_id: str) -> None:
        self._tagged[query.node_id].pop(node_id, None)

    def advance(
        self, close: int, bars: Mapping[str, Row], tagged: "Mapping[str, Mapping[str, Row]] | None" = None
    ) -> Iterator[Output]:
        """The bars that close at `close` (ns), by StreamInput; `tagged` likewise by tag query and upstream. Rows that nodes put out, in order. Bars of the past are counted in `late` and dropped."""
        for moment in sorted(
            {
                end
                for node_id, opened in self._open.items()
                for end in self._ends(node_id, opened)
                if end < close
            }
        ):
            yield from self._tick(moment, set())
        ticked: set[str] = set()
        for node_id, (ts, values) in bars.items():
            series = self._series[node_id]
            if ts + series.interval * NS <= series.last_close:
                self.late += 1
                continue
            series.append(ts, values)
            series.first = 0
            ticked.add(node_id)
        for query_id, rows in (tagged or {}).items():
            for node_id, (ts, values) in rows.items():
                series = self._tagged[query_id][node_id]
                if ts + series.interval * NS <= series.last_close:
                    self.late += 1
                    continue
                series.append(ts, values)
                if (
                    close > self._series[query_id].last_close
                ):  # a row that comes after its bar was asked about is seen by the next
                    ticked.add(query_id)
        yield from self._tick(close, ticked)

    def _tick(self, close: int, ticked: set[str]) -> Iterator[Output]:
        self.now = max(self.now, close)
        for node in self._nodes:
            if isinstance(node, StreamInput):
                self._note(node, ticked, close)
                continue
            for ts in self._due(node, ticked, close):
                output = self._ask(node, ts)
                series = self._series[node.node_id]
                series.append(ts, output.values)
                ticked.add(node.node_id)
                yield output
            self._note(node, ticked, close)

    def _note(self, node: Node, ticked: set[str], close: int) -> None:
        """A bar of `node` opens, or goes on, a bar of each coarser reader."""
        if node.node_id not in ticked:
            return
        ts = int(close - node.interval * NS)
        for reader_id, opened in self._open.items():
            reader = self._by_id[reader_id]
            if (
                any(parent.node_id == node.node_id for parent in reader.inputs)
                and node.interval < reader.interval
            ):
                start = ts // (reader.interval * NS) * reader.interval * NS
                if (not opened or start > opened[-1]) and start + reader.interval * NS > self._series[
                    reader_id
                ].last_close:
                    opened.append(start)

    def _due(self, node: Node, ticked: set[str], close: int) -> list[int]:
        """Opening times of the node's bars that end by now."""
        if node.node_id in self._tagged:
            return [close - node.interval * NS] if node.node_id in ticked else []
        if node.node_id in self._open:
            opened = self._open[node.node_id]
            due = [start for start in opened if start + node.interval * NS <= close]
            del opened[: len(due)]
            return due
        if close <= self._series[node.node_id].last_close:
            return []
        return (
            [close - node.interval * NS]
            if any(parent.node_id in ticked and parent.interval == node.interval for parent in node.inputs)
            else []
        )

    def _ask(self, node: Node, ts: int) -> Output:
        if node.node_id in self._tagged:
            inputs, ready = self._tagged[node.node_id], True
        else:
            inputs = {parent.node_id: self._series[parent.node_id] for parent in node.inputs}
            ready = all(
                series.first is not None and series.total >= series.first + node.period
                for series in inputs.values()
            )
        series = self._series[node.node_id]
        if not ready:
            return Output(node, ts, {}, "")
        if series.first is None:
            series.first = series.total
        windows = {node_id: found.window(node.period) for node_id, found in inputs.items()}
        window = window_hash(windows)
        try:
            if node.compute_fn is None:
                values = {
                    f"{found.label}.{name}": float(column[-1])
                    for found in windows.values()
                    for name, column in found.columns.items()
                    if len(column)
                }
            else:
                with np.errstate(all="ignore"):
                    values = last_row(node.compute_fn(CacheView(windows)), ts, node.label)
        except QmtlError as error:
            return Output(node, ts, {}, window, error)
        except Exception as error:  # the author's function may raise anything; it is reported with its place
            return Output(node, ts, {}, window, author_error(node, series.total, ts, error))
        return Output(node, ts, values, window)

    @staticmethod
    def _coarse(node: Node) -> bool:
        return bool(node.inputs) and all(parent.interval != node.interval for parent in node.inputs)

    def _ends(self, node_id: str, opened: "list[int]") -> list[int]:
        return [start + self._series[node_id].interval * NS for start in opened]

    def _reopen(self, node: Node, tapes: Mapping[str, NodeOutput]) -> None:
        """The coarse bars that were open where the tapes ended."""
        step = node.interval * NS
        finer = [
            tapes[parent.node_id].bars.ts
            for parent in node.inputs
            if parent.interval < node.interval and parent.node_id in tapes
        ]
        starts = (
            np.unique(np.concatenate([ts // step * step for ts in finer]))
            if finer
            else np.empty(0, dtype="int64")
        )
        self._open[node.node_id] = [
            int(start) for start in starts[starts + step > self._series[node.node_id].last_close]
        ]


def window_hash(windows: Mapping[str, Window]) -> str:
    """What a node saw, in 32 hex digits: times and values of each input."""
    digest = blake3()
    for node_id in sorted(windows):
        window = windows[node_id]
        digest.update(f"{node_id}:{len(window)}".encode())
        digest.update(np.ascontiguousarray(window.ts).tobytes())
        for name in sorted(window.columns):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(window.columns[name]).tobytes())
    return digest.hexdigest(16)
