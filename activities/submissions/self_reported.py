"""Why the returns of a run are an author's own statement, and no measurement of the service.

A strategy with such evidence is judged and shown, and goes no further than backtest. What the service can
check it computes again: the returns of uploaded positions, from bars that it reads itself.
"""

import numpy as np

from activities.messages.submission import RunContextBody
from qmtl_sdk.contracts.dag import STREAM, Dag
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.data.bars import CLOSE, NS, Bars, from_ns, iso
from qmtl_sdk.data.presets import load
from qmtl_sdk.reports.returns import BPS, Returns, position_returns

# By how much a return may differ from the service's: sums in another order are rounded in another way.
_TOLERANCE = 1e-9


def why_self_reported(returns: Returns, dag: Dag, run: RunContextBody) -> str:
    """Return why the returns are self-reported; empty where the service has computed the same.

    Raises QmtlError as `load`.
    """
    if dag.returns is not None:
        return "the strategy names its own returns (returns=)"
    own = {
        node.node_id: node.label for node in dag.nodes if node.node_type == STREAM and "source" in node.params
    }
    for node_id in returns.price_streams:
        if node_id in own:
            return f"its price stream {own[node_id]} has a source of the author's own"
    bound = {binding.node_id: binding for binding in run.bindings}
    if not returns.values.any():
        return ""  # flat: there is nothing to claim
    if (
        not returns.positions
        or not set(returns.instruments.values()) <= set(bound)
        or not returns.instruments
    ):
        return "its returns follow from no positions over the world's data"
    return _difference(returns, bound, run)


def _difference(returns: Returns, bound: dict[str, StreamBinding], run: RunContextBody) -> str:
    """Describe the first difference to what the service computes; empty where there is none."""
    cost = (run.execution.fee_bps + run.execution.slippage_bps) * BPS
    values, dated = np.zeros(len(returns.ts)), np.zeros(len(returns.ts), dtype=bool)
    if abs(sum(map(abs, returns.weights.values())) - 1) > _TOLERANCE:
        return "the weights of its instruments do not add up to 1"
    for name, position in returns.positions.items():
        if (np.abs(position) > 1).any():
            return f"the position of {name[:40]} is beyond 1"
        bars = _bars(returns, bound[returns.instruments[name]])
        if isinstance(bars, str):
            return f"{name[:40]}: {bars}"
        own = np.isin(_buckets(returns.ts, returns), _buckets(bars.ts, returns))
        rows = np.flatnonzero(own) if bars.interval == returns.interval else np.arange(len(returns.ts))
        missing = _missing(returns, position, bars)
        if missing:
            return missing
        dated |= own
        at = np.searchsorted(bars.closes, returns.ts[rows] + returns.interval * NS, side="right") - 1
        close = np.where(at >= 0, bars.columns[CLOSE][np.maximum(at, 0)], np.nan)
        values[rows] += returns.weights[name] * position_returns(position[rows], close, cost)
    if not dated.all():
        return f"the world has no bar at {iso(int(returns.ts[int(np.flatnonzero(~dated)[0])]))}"
    values[0] = 0.0
    differing = np.flatnonzero(np.abs(values - returns.values) > _TOLERANCE)
    if not len(differing):
        return ""
    row = int(differing[0])
    return (
        f"its positions and the world's bars give a return of {values[row]:.6g} at "
        f"{iso(int(returns.ts[row]))}, not {returns.values[row]:.6g}"
    )


def _bars(returns: Returns, binding: StreamBinding) -> Bars | str:
    """Return the bars of an instrument up to the last return, or why there are none."""
    last = from_ns(int(returns.ts[-1]) + returns.interval * NS)
    bars = load(binding.preset, binding.stream).until(last)
    if CLOSE not in bars.columns:
        return f"the stream {binding.stream} has no close"
    return bars if len(bars) else f"the stream {binding.stream} has no bars by then"


def _missing(returns: Returns, position: np.ndarray, bars: Bars) -> str:
    """Name the first bar of an instrument that has no return, from its first position on.

    Without it, whoever leaves out the bars in which nothing happens has a better Sharpe ratio.
    """
    held = np.flatnonzero(position)
    if not len(held):
        return ""
    expected = np.unique(_buckets(bars.ts[bars.ts >= returns.ts[held[0]]], returns))
    lacking = np.setdiff1d(expected, _buckets(returns.ts, returns))
    return f"it has no return at {iso(int(lacking[0]) * returns.interval * NS)}" if len(lacking) else ""


def _buckets(ts: np.ndarray, returns: Returns) -> np.ndarray:
    """Return the number of the bar of the returns' interval in which each time lies."""
    found: np.ndarray = ts // (returns.interval * NS)
    return found
