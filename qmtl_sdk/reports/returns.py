"""The returns of a strategy, from the node that it names, from its positions, or from its target weights.

A position that is decided at a close earns from the next bar on. An instrument is a node with a column
`position` in −1…1 (or `signal`, 0 or 1) over one price stream. Its return is

r[t] = position[t-1] · (close[t] / close[t-1] − 1) − cost · |position[t-1] − position[t-2]|

where cost is fee and slippage of the world's execution model. Instruments are averaged by weight. A missing
position is flat. A missing close is carried: the return of its bar is 0, and the next known close has the
whole move. The first return is 0, never missing.

Where no node has a position, the last node with a column `target_weight` of each pipeline is an instrument. A
target weight is a share of the whole strategy, so the instruments' returns are added up. They are recorded as
positions with weights that sum to 1, whose products are the target weights (`target_weights`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.dag import TAG_QUERY, upstream
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import Execution
from qmtl_sdk.data.bars import CLOSE, NS, iso, to_ns
from qmtl_sdk.nodes.node import Node, StreamInput
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.target_weights import peaks_of, target_nodes
from qmtl_sdk.transforms.columns import WEIGHT
from qmtl_sdk.transforms.execution import price_streams

POSITION = "position"
SIGNAL = "signal"

# One basis point, as a fraction.
BPS = 1e-4


@dataclass(frozen=True)
class Returns:
    """Simple returns of a strategy.

    `ts` are the opening times (int64, ns UTC) of the bars, `values` the return of each, `positions` the
    position of each instrument at their closes. The absolute `weights` of the instruments sum to 1.
    `instruments` names the price stream (NodeID) of each. `carried` counts returns across a missing close.
    Returns that a strategy names itself have neither positions nor instruments.
    """

    ts: np.ndarray
    values: np.ndarray
    interval: int
    positions: dict[str, np.ndarray]
    weights: dict[str, float]
    price_streams: tuple[str, ...]
    instruments: dict[str, str] = field(default_factory=dict)
    carried: int = 0


@dataclass(frozen=True)
class _Instrument:
    """A position node with its price stream and its own returns."""

    node: Node
    price: StreamInput
    ts: np.ndarray
    returns: np.ndarray
    position: np.ndarray
    carried: int

    def scaled(self, peak: float, total: float) -> "_Instrument":
        """Return it with position and returns divided by its peak and multiplied by the total of all."""
        if not peak:
            return self
        return replace(self, position=self.position / peak * total, returns=self.returns / peak * total)


def position_returns(position: np.ndarray, close: np.ndarray, cost: float) -> np.ndarray:
    """Return the returns of positions decided at closes: all float64 by bar, `cost` as a fraction."""
    returns = np.zeros(len(position))
    held = position[:-1]
    with np.errstate(all="ignore"):
        known = _last_known(close)
        change = known[1:] / known[:-1] - 1
    returns[1:] = held * np.nan_to_num(change, nan=0.0) - cost * np.abs(np.diff(held, prepend=0.0))
    return returns


def _last_known(close: np.ndarray) -> np.ndarray:
    """Return the closes with each missing one replaced by the last known before it."""
    rows = np.maximum.accumulate(np.where(np.isnan(close), 0, np.arange(len(close))))
    found: np.ndarray = close[rows]
    return found


def returns_of(
    built: BuiltStrategy,
    outputs: Mapping[str, NodeOutput],
    execution: Execution,
    as_of: datetime | None = None,
) -> Returns:
    """Compute the returns of a strategy from its nodes' outputs, `outputs`, by NodeID.

    A strategy without positions that publishes outputs by tag, or queries those of others, has returns of 0.
    Raises QmtlError: E_RETURNS_MISSING, E_RETURNS_AMBIGUOUS, E_COMPUTE_OUTPUT.
    """
    carriers = [
        node
        for node in built.nodes
        if _position_column(outputs[node.node_id]) and not isinstance(node, StreamInput)
    ]
    if built.strategy.returns_node is not None:
        return _named(built.strategy.returns_node, outputs)
    targets = [] if carriers else target_nodes(built, outputs)
    carriers = carriers or targets
    if not carriers and any(
        node.node_type == TAG_QUERY or (node.tags and not isinstance(node, StreamInput))
        for node in built.nodes
    ):
        return _flat(built, outputs, as_of)
    if not carriers:
        raise QmtlError(
            "E_RETURNS_MISSING",
            f"{built.name} has no node with a column position, signal or target_weight, nor one named with "
            "returns=",
            "return pd.DataFrame({'position': …}) from a node, or pass returns= to add_nodes",
        )
    cost = (execution.fee_bps + execution.slippage_bps) * BPS
    instruments = [_instrument(node, outputs, cost) for node in carriers]
    intervals = {item.node.interval for item in instruments}
    if len(intervals) > 1:
        raise QmtlError(
            "E_RETURNS_AMBIGUOUS",
            f"the position nodes of {built.name} have different intervals",
            "give them one interval, or pass returns= to add_nodes",
        )
    given = [
        built.strategy.weights.get(item.node, 0.0 if built.strategy.weights else 1.0) for item in instruments
    ]
    if targets:
        given = peaks_of([item.position for item in instruments], built)
        # Rounded: peaks that sum to 1 but for the last bit give no position beyond 1.
        total = round(sum(given), 12)
        instruments = [item.scaled(peak, total) for item, peak in zip(instruments, given, strict=True)]
    if sum(map(abs, given)) <= 0:
        raise QmtlError(
            "E_RETURNS_MISSING",
            f"the weights of {built.name} name none of its position nodes",
            "name the nodes whose output has a column position or signal",
        )
    weights = [weight / sum(map(abs, given)) for weight in given]
    ts = np.unique(np.concatenate([item.ts for item in instruments]))
    values = np.zeros(len(ts))
    positions: dict[str, np.ndarray] = {}
    shares: dict[str, float] = {}
    prices: dict[str, str] = {}
    for item, weight in zip(instruments, weights, strict=True):
        rows = np.searchsorted(ts, item.ts)
        values[rows] += weight * item.returns
        name = _unique(item.node.label, positions)
        positions[name] = _carried(ts, item.ts, item.position)
        shares[name] = weight
        prices[name] = item.price.node_id
    values[0] = 0.0
    carried = sum(item.carried for item in instruments)
    streams = tuple(dict.fromkeys(prices.values()))
    return Returns(ts, values, intervals.pop(), positions, shares, streams, prices, carried)


def _flat(built: BuiltStrategy, outputs: Mapping[str, NodeOutput], as_of: datetime | None) -> Returns:
    """Return zeros at the bars of the finest node that has any, or at the last bar before `as_of`."""
    computed = [outputs[node.node_id].bars for node in built.nodes if len(outputs[node.node_id].bars)]
    if computed:
        finest = min(computed, key=lambda bars: bars.interval)
        return Returns(finest.ts, np.zeros(len(finest.ts)), finest.interval, {}, {}, ())
    interval = min(node.interval for node in built.nodes)
    if as_of is None:
        raise QmtlError(
            "E_RETURNS_MISSING",
            f"{built.name} has neither data nor a time that it is computed for",
            "submit it to a world with a clock",
        )
    step = interval * NS
    return Returns(
        np.array([to_ns(as_of) // step * step - step], dtype="int64"), np.zeros(1), interval, {}, {}, ()
    )


def _instrument(node: Node, outputs: Mapping[str, NodeOutput], cost: float) -> _Instrument:
    price = _price_of(node, outputs)
    output, bars = outputs[node.node_id], outputs[price.node_id].bars
    column = _position_column(output) or WEIGHT
    decided = output.bars.columns[column]
    _within(node, column, output)
    first = output.first
    ts, position = output.bars.ts[first:], np.nan_to_num(decided[first:], nan=0.0)
    at = np.searchsorted(bars.closes, output.bars.closes[first:], side="right") - 1
    if (at < 0).any():
        raise QmtlError(
            "E_RETURNS_MISSING",
            f"{node.label} decides before its price stream {price.label} begins",
            "give the stream more history",
        )
    close = bars.columns[CLOSE][at]
    carried = int((np.isnan(close[:-1]) & ~np.isnan(close[1:]) & (position[:-1] != 0)).sum())
    return _Instrument(node, price, ts, position_returns(position, close, cost), position, carried)


def _price_of(node: Node, outputs: Mapping[str, NodeOutput]) -> StreamInput:
    """Find the one price stream that a position derives from. Raises QmtlError (E_RETURNS_AMBIGUOUS)."""
    found = [stream for stream in price_streams(node) if CLOSE in outputs[stream.node_id].bars.columns]
    if len(found) == 1:
        return found[0]
    why = "no stream with a column close"
    if found:
        why = "several price streams: " + ", ".join(sorted(stream.label for stream in found))
    raise QmtlError(
        "E_RETURNS_AMBIGUOUS",
        f"{node.label} derives from {why}",
        "give each instrument a position node of its own, or pass returns= to add_nodes",
        node=node.node_id,
    )


def _within(node: Node, column: str, output: NodeOutput) -> None:
    values = output.bars.columns[column]
    good = np.isnan(values) | (np.isin(values, (0.0, 1.0)) if column == SIGNAL else np.abs(values) <= 1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        wanted = "0 or 1" if column == SIGNAL else "between -1 and 1"
        raise QmtlError(
            "E_COMPUTE_OUTPUT",
            f"{node.label} gives a {column} of {values[row]:g} at {iso(int(output.bars.ts[row]))}",
            f"keep it {wanted}",
            node=node.node_id,
        )


def _position_column(output: NodeOutput) -> str:
    return next((name for name in (POSITION, SIGNAL) if name in output.bars.columns), "")


def _named(node: Node, outputs: Mapping[str, NodeOutput]) -> Returns:
    output = outputs[node.node_id]
    columns = output.bars.columns
    if len(columns) != 1 and "returns" not in columns:
        raise QmtlError(
            "E_RETURNS_AMBIGUOUS",
            f"{node.label} is named with returns= and has the columns {', '.join(columns)}",
            "give it one column, or one called returns",
            node=node.node_id,
        )
    values = columns["returns"] if "returns" in columns else next(iter(columns.values()))
    values = np.nan_to_num(values[output.first :], nan=0.0)
    values[0] = 0.0
    streams = tuple(stream.node_id for stream in _streams(node))
    return Returns(output.bars.ts[output.first :], values, node.interval, {}, {}, streams)


def _streams(node: Node) -> list[StreamInput]:
    """Return the streams that a node derives from."""
    return [
        found for found in upstream([node], lambda parent: parent.inputs) if isinstance(found, StreamInput)
    ]


def _carried(ts: np.ndarray, own: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Return a position at other instruments' bars: the last decided one, flat before the first."""
    at = np.searchsorted(own, ts, side="right") - 1
    return np.where(at >= 0, position[np.maximum(at, 0)], 0.0)


def _unique(label: str, taken: Mapping[str, object]) -> str:
    name, number = label, 2
    while name in taken:
        name, number = f"{label} {number}", number + 1
    return name
