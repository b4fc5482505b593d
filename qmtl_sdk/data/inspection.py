"""What is odd in the data of a world, reported when it is created: facts that people judge, and no errors.

A stream's report counts bars that are missing, blank, not positive or off session, jumps as a split would
make them, and bars beyond the world's clock.
"""

from datetime import datetime

import numpy as np

from qmtl_sdk.contracts.worlds import Preset, WorldSpec
from qmtl_sdk.data.bars import CLOSE, NS, Bars, iso, to_ns
from qmtl_sdk.data.calendars import missing, off_session, require
from qmtl_sdk.data.market import market_data
from qmtl_sdk.data.presets import load

# Ratios of shares in a split, and by how much a price may move besides, as a fraction.
_SPLITS = (1.5, 2.0, 3.0, 4.0, 5.0, 7.0, 8.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 100.0)
_BESIDES = 0.03

# Jumps that a report names.
_NAMED = 5


def inspect_world(spec: WorldSpec, now: datetime) -> dict[str, dict[str, object]]:
    """Read every stream of a world, so that faults in its data are reported when the world is created.

    `now` is the world's time. Returns the fingerprint and the report of each stream, by preset. Raises
    QmtlError as `load`.
    """
    report: dict[str, dict[str, object]] = {}
    for preset in spec.data.presets:
        require(preset.calendar)
        streams = {stream: load(preset, stream) for stream in preset.streams}
        report[preset.name] = {
            "dataset_fingerprint": market_data(preset).fingerprint(),
            "streams": {name: inspect_stream(preset, bars, now) for name, bars in streams.items()},
        }
    return report


def inspect_stream(preset: Preset, bars: Bars, now: datetime) -> dict[str, object]:
    """Return the number of bars of a stream, their range, and what is odd about them."""
    close = bars.columns.get(CLOSE, np.array([]))
    jumps = split_like(close)
    return {
        "bars": len(bars),
        "first": iso(int(bars.ts[0])),
        "last": iso(int(bars.ts[-1])),
        "missing": len(missing(bars, preset.calendar)),
        "blank": int(np.isnan(close).sum()),
        "not_positive": int((close <= 0).sum()),
        "off_session": int(off_session(bars, preset.calendar).sum()),
        "split_like": len(jumps),
        "split_like_at": [iso(int(bars.ts[row])) for row in jumps[:_NAMED]],
        "after_clock": int((bars.ts + bars.interval * NS > to_ns(now)).sum()),
    }


def split_like(close: np.ndarray) -> np.ndarray:
    """Return the rows at which a price jumps by the ratio of a usual split, up or down."""
    known = np.flatnonzero(close > 0)
    if len(known) < 2:
        return np.array([], dtype="int64")
    change = close[known[1:]] / close[known[:-1]]
    ratio = np.maximum(change, 1 / change)
    splits = np.array(_SPLITS)
    near = (np.abs(ratio[:, None] / splits - 1) <= _BESIDES).any(axis=1)
    found: np.ndarray = known[1:][near]
    return found
