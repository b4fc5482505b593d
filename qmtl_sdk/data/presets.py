"""The streams of a world: bind each StreamInput to one, and load its bars.

A StreamInput is bound to the one stream of its interval that carries all of its tags; one without tags to the
only stream of that interval. The binding belongs to the world and never enters the NodeID.
"""

from datetime import datetime

from qmtl_sdk.contracts.dag import STREAM, Dag, NodeRecord
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.contracts.worlds import Preset, WorldSpec
from qmtl_sdk.data.bars import Bars, combined, from_ns
from qmtl_sdk.data.market import market_data, require_no_gap


def bind(dag: Dag, world: WorldSpec) -> tuple[StreamBinding, ...]:
    """Bind each StreamInput without a source of its own to a stream of the world.

    Raises QmtlError: E_STREAM_UNBOUND, E_STREAM_AMBIGUOUS.
    """
    return tuple(
        _bind(node, world) for node in dag.nodes if node.node_type == STREAM and "source" not in node.params
    )


def _bind(node: NodeRecord, world: WorldSpec) -> StreamBinding:
    tags, instrument = set(node.params.get("tags", ())), node.params.get("instrument")
    streams = [
        (preset, name, set(labels))
        for preset in world.data.presets
        for name, labels in preset.streams.items()
    ]
    found = [
        (preset, name)
        for preset, name, labels in streams
        if preset.interval == node.interval and tags <= labels and (instrument is None or instrument == name)
    ]
    if len(found) == 1:
        return StreamBinding(node_id=node.node_id, preset=found[0][0], stream=found[0][1])
    tagged = f" tagged {'+'.join(sorted(tags))}" if tags else ""
    wanted = f"{node.label}: a stream{tagged} at {format_duration(node.interval)}"
    there = (
        "; ".join(
            f"{name} at {format_duration(preset.interval)} ({', '.join(sorted(labels))})"
            for preset, name, labels in streams[:20]
        )
        or "no streams at all"
    )
    if found:
        raise QmtlError(
            "E_STREAM_AMBIGUOUS",
            f"{wanted} could be {', '.join(name for _, name in found)} in world {world.world}",
            f"add tags until one is left; there are: {there}",
            node=node.node_id,
        )
    raise QmtlError(
        "E_STREAM_UNBOUND",
        f"{wanted} is not in world {world.world}",
        f"there are: {there}",
        node=node.node_id,
    )


def load(preset: Preset, stream: str) -> Bars:
    """Read all bars of a stream.

    Raises QmtlError: as `market_data` and `MarketDataSource.read`; E_DATA_GAP where a bar is missing and the
    preset says that this is a fault.
    """
    bars = market_data(preset).read(stream)
    require_no_gap(preset, stream, bars)
    return bars


def fingerprint_of(bindings: tuple[StreamBinding, ...]) -> str:
    """Return the fingerprint of the data sets that a run reads."""
    presets = {binding.preset.name: binding.preset for binding in bindings}
    return combined([market_data(preset).fingerprint() for preset in presets.values()])


def newest_close(
    bindings: tuple[StreamBinding, ...], now: datetime
) -> tuple[datetime | None, datetime | None, datetime | None]:
    """Return three times about the bound streams at world time `now`.

    None each where there are no streams.

    They are the close of the newest bar of any stream, the close of the newest bar of the stream that lags
    most, and the first bar of the stream that began last. Raises QmtlError (E_DATA_EMPTY).
    """
    ends, starts = [], []
    for binding in bindings:
        bars = load(binding.preset, binding.stream).until(now)
        if not len(bars):
            raise QmtlError(
                "E_DATA_EMPTY",
                f"{binding.preset.name}/{binding.stream} has no bar before {now.isoformat()}",
                "move the world's clock, or give it data that reaches back further",
            )
        ends.append(int(bars.closes[-1]))
        starts.append(int(bars.ts[0]))
    if not ends:
        return None, None, None
    return from_ns(max(ends)), from_ns(min(ends)), from_ns(max(starts))
