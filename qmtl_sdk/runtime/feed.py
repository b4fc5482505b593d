"""Read the bars of a running strategy's streams, each once, as they close on the world's clock.

A bar is returned only once the world's time has reached its close. Bars that appear before the newest
returned bar are counted in `late` and skipped, because a node's output for a bar is final.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.data.bars import checked, to_ns
from qmtl_sdk.data.market import NewBars, market_data, require_no_gap
from qmtl_sdk.nodes.node import StreamInput

Row = tuple[int, dict[str, float]]

# The position before every bar.
_BEGINNING = -(2**63)


@dataclass
class _Stream:
    """A stream with the close (ns) of the newest bar returned so far, and the count of bars up to it."""

    node: StreamInput
    follow: Callable[[int, int], NewBars]
    last_close: int
    earlier: int | None = None


class BarFeed:
    """Returns bars by close.

    `after` maps a NodeID to the close (ns) of its newest bar that was already handled.
    """

    def __init__(
        self, nodes: "list[StreamInput]", bindings: "dict[str, StreamBinding]", after: "dict[str, int]"
    ) -> None:
        self._streams = [
            _Stream(node, _follower(node, bindings.get(node.node_id)), after.get(node.node_id, _BEGINNING))
            for node in nodes
        ]
        self.late = 0

    def due(self, now: datetime, limit: int = 2000) -> Iterator[tuple[int, dict[str, Row]]]:
        """Yield the bars that closed since the last call, oldest first: their close (ns), and bars by NodeID.

        Raises QmtlError where a source cannot be read; a later call returns the same bars.
        """
        found: dict[int, dict[str, Row]] = {}
        new = [(stream, stream.follow(stream.last_close, limit + 1)) for stream in self._streams]
        horizon = to_ns(now)  # no stream may overtake another that has more bars than the limit
        for _, read in new:
            if limit < len(read.bars):
                horizon = min(horizon, int(read.bars.closes[limit - 1]))
        for stream, read in new:
            if stream.earlier is not None and read.earlier is not None and read.earlier > stream.earlier:
                self.late += read.earlier - stream.earlier
            stream.earlier = read.earlier
            bars = read.bars
            closes = bars.closes
            fields = stream.node.params.get("fields") or list(bars.columns)
            for row in range(int(np.searchsorted(closes, horizon, side="right"))):
                found.setdefault(int(closes[row]), {})[stream.node.node_id] = (
                    int(bars.ts[row]),
                    {name: float(bars.columns[name][row]) for name in fields},
                )
        for close in sorted(found):
            yield close, found[close]
            for stream in self._streams:
                if stream.node.node_id in found[close]:
                    stream.last_close = close
                    stream.earlier = (stream.earlier or 0) + 1

    def newest_closes(self) -> dict[str, int]:
        """Return the close (ns) of the newest bar returned, by the stream's label."""
        return {stream.node.label: stream.last_close for stream in self._streams}

    @property
    def interval(self) -> int:
        """The interval of the coarsest stream, in seconds; 0 without streams."""
        return max((stream.node.interval for stream in self._streams), default=0)


def _follower(node: StreamInput, binding: StreamBinding | None) -> Callable[[int, int], NewBars]:
    if binding is not None:
        return lambda after, limit: _follow_preset(binding, after, limit)
    source = node.source
    if source is None:
        raise QmtlError(
            "E_STREAM_UNBOUND",
            f"{node.label} has neither a stream of the world nor a source of its own",
            "submit the strategy again",
            node=node.node_id,
        )

    def follow(after: int, limit: int) -> NewBars:
        bars = checked(source.read(), node.label)
        row = int(np.searchsorted(bars.closes, after, side="right"))
        return NewBars(bars.rows(row, min(row + limit, len(bars))), earlier=row)

    return follow


def _follow_preset(binding: StreamBinding, after: int, limit: int) -> NewBars:
    preset = binding.preset
    position = None if after == _BEGINNING else after
    new = market_data(preset).follow(binding.stream, position, limit)
    require_no_gap(preset, binding.stream, new.bars, position)
    return new
