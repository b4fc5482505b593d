"""A running strategy's data: the bars of its streams, each once, as they close on the world's clock.

A stream's bars are read again when its file has changed. Nothing is handed out before the world's time has reached its close. Bars that appear in the past of what
was handed out are counted in `late` and left out: what a node has said of a bar is not said again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.data.bars import Bars, checked, to_ns
from qmtl_sdk.data.presets import load
from qmtl_sdk.nodes.node import StreamInput

Row = tuple[int, dict[str, float]]


@dataclass
class _Stream:
    node: StreamInput
    read: Callable[[], Bars]
    last_close: int
    before: int | None = None


class BarFeed:
    """`after`: by NodeID, the close (ns) of the newest bar that was handled already."""

    def __init__(
        self, nodes: "list[StreamInput]", bindings: "dict[str, StreamBinding]", after: "dict[str, int]"
    ) -> None:
        self._streams = [
            _Stream(node, _reader(node, bindings.get(node.node_id)), after.get(node.node_id, -(2**63)))
            for node in nodes
        ]
        self.late = 0

    def due(self, now: datetime, limit: int = 2000) -> Iterator[tuple[int, dict[str, Row]]]:
        """By close, oldest first: the bars that closed since they were last asked for, by NodeID. Raises QmtlError where a source can't be read; nothing is lost by that."""
        found: dict[int, dict[str, Row]] = {}
        read = [(stream, stream.read()) for stream in self._streams]
        horizon = to_ns(now)  # no stream is ahead of another that has more than the limit
        for stream, bars in read:
            lo = int(np.searchsorted(bars.closes, stream.last_close, side="right"))
            if lo + limit < len(bars):
                horizon = min(horizon, int(bars.closes[lo + limit - 1]))
        for stream, bars in read:
            closes = bars.closes
            lo, hi = (
                int(np.searchsorted(closes, stream.last_close, side="right")),
                int(np.searchsorted(closes, horizon, side="right")),
            )
            if stream.before is not None and lo > stream.before:
                self.late += lo - stream.before
            stream.before = lo
            fields = stream.node.params.get("fields") or list(bars.columns)
            for row in range(lo, hi):
                found.setdefault(int(closes[row]), {})[stream.node.node_id] = (
                    int(bars.ts[row]),
                    {name: float(bars.columns[name][row]) for name in fields},
                )
        for close in sorted(found):
            yield close, found[close]
            for stream in self._streams:
                if stream.node.node_id in found[close]:
                    stream.last_close, stream.before = close, (stream.before or 0) + 1

    def silent_since(self) -> dict[str, int]:
        """By stream's label, the close (ns) of the newest bar that was handed out."""
        return {stream.node.label: stream.last_close for stream in self._streams}

    @property
    def interval(self) -> int:
        """The coarsest stream's interval, seconds; 0 without streams."""
        return max((stream.node.interval for stream in self._streams), default=0)


def _reader(node: StreamInput, binding: StreamBinding | None) -> Callable[[], Bars]:
    if binding is not None:
        return lambda: load(binding.preset, binding.stream)
    source = node.source
    if source is None:
        raise QmtlError(
            "E_STREAM_UNBOUND",
            f"{node.label} has neither a stream of the world nor a source of its own",
            "submit the strategy again",
            node=node.node_id,
        )
    return lambda: checked(source.read(), node.label)
