"""The newest bars of streams, each read once as it closes, for all orders that wait for it."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from qmtl_sdk.brokerage.fills import MarketBar
from qmtl_sdk.brokerage.simulation import market_bars
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import Preset, World
from qmtl_sdk.data.bars import CLOSE, NS
from qmtl_sdk.data.market import market_data

# Streams whose newest bars are kept.
_STREAMS = 500

# Bars that one read takes: an order that waited through more is followed in several reads.
_AT_ONCE = 32

# Seconds between two reads of a stream in which a bar is due that is not there, such as over a weekend: a
# twentieth of its interval, between these.
_READ_AGAIN_S = (0.02, 30.0)


@dataclass(frozen=True)
class Stream:
    """A stream of a world, in its present state: another `etag` may name other data."""

    world_id: str
    etag: str
    preset: Preset
    name: str
    speed: float

    @property
    def interval_ns(self) -> int:
        """The length of a bar (ns)."""
        return self.preset.interval * NS

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from other streams."""
        return (self.world_id, self.etag, self.preset.name, self.name)


@dataclass(frozen=True)
class _Read:
    """The first bars, with their closes (ns), of those that close after `after`; read at a monotonic time."""

    after: int
    bars: list[tuple[int, MarketBar]]
    at: float

    def beyond(self, after: int) -> list[tuple[int, MarketBar]]:
        """Return the bars that close after a time (ns), where all of these are known."""
        if after < self.after:
            return []
        return [item for item in self.bars if item[0] > after]

    def had_none(self, after: int) -> bool:
        """Return whether no bar that closes after a time was there yet, for whichever order it was read."""
        ended = len(self.bars) < _AT_ONCE
        return ended and self.after <= after and not self.beyond(after)


class BarReader:
    """Reads the bars of streams as they close, a few at a time."""

    def __init__(self) -> None:
        self._reads: OrderedDict[tuple[str, str, str, str], _Read] = OrderedDict()

    def closed(self, stream: Stream, after: int, now: int) -> Iterator[tuple[int, MarketBar]]:
        """Yield some bars that closed after a time and until now (ns, world time), with their closes.

        None where none is due. Raises QmtlError where the source cannot be read.
        """
        if after + stream.interval_ns > now:
            return
        read = self._reads.get(stream.key)
        found = read.beyond(after) if read else []
        if not found and not (
            read and read.had_none(after) and time.monotonic() - read.at < _pause_s(stream)
        ):
            read = self._read(stream, after)
            found = read.bars
        for close, bar in found:
            if close > now:
                return
            yield close, bar

    def quiet_s(self, stream: Stream, after: int) -> float:
        """Return the seconds until a bar that is due after a time (ns, world time) is looked for again."""
        read = self._reads.get(stream.key)
        if read is None or not read.had_none(after):
            return 0.0
        return max(read.at + _pause_s(stream) - time.monotonic(), 0.0)

    def _read(self, stream: Stream, after: int) -> _Read:
        try:
            new = market_data(stream.preset).follow(stream.name, after, _AT_ONCE).bars
        except QmtlError as error:
            if error.code != "E_UNAVAILABLE":
                raise
            # Of a venue, that would say that it is away; here orders of other streams can be filled.
            raise QmtlError("E_EXTENSION", error.message, error.remedy) from error
        bars = list(zip(new.closes.tolist(), market_bars(new), strict=True)) if len(new.only([CLOSE])) else []
        read = _Read(after, bars, time.monotonic())
        self._reads[stream.key] = read
        self._reads.move_to_end(stream.key)
        while len(self._reads) > _STREAMS:
            self._reads.popitem(last=False)
        return read


def stream_of(world: World, symbol: str) -> Stream | None:
    """Return the stream of a world with the bars of a symbol: the one of the shortest interval.

    A stream is of the symbol that it is named after, or else of one that it alone has as a tag.
    """
    presets = sorted(world.spec.data.presets, key=lambda preset: preset.interval)
    named = [(preset, symbol) for preset in presets if symbol in preset.streams]
    tagged = [
        (preset, name) for preset in presets for name, labels in preset.streams.items() if symbol in labels
    ]
    found = named or [item for item in tagged if item[0].interval == tagged[0][0].interval]
    if not named and len(found) != 1:
        return None
    replay = world.spec.clock.replay
    return Stream(world.spec.world, world.etag, *found[0], speed=1.0 if replay is None else replay.speed)


def _pause_s(stream: Stream) -> float:
    shortest, longest = _READ_AGAIN_S
    if not stream.speed:
        return longest
    return min(max(stream.preset.interval / stream.speed / 20, shortest), longest)
