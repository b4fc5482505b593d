"""Hourly indicators of EUR/USD that other strategies find by their tag, and a strategy that reads them.

None of them holds a position.
"""

import pandas as pd

from qmtl_sdk import CacheView, MatchMode, Node, Strategy, StreamInput, TagQueryNode

TAG = "ta-indicator"
"""The tag of the indicators' queues."""


class _Indicator(Strategy):
    """A relative strength index of simple means: the share of gains in all changes of `period` hours."""

    label = ""
    period = 0

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=self.period + 1)
        label, period = self.label, self.period

        def strength(view: CacheView) -> pd.DataFrame:
            change = view[price].frame["close"].diff()
            gain, moved = (x.rolling(period).sum() for x in (change.clip(lower=0), change.abs()))
            return pd.DataFrame({label: (100 * gain / moved).where(moved > 0, 50.0)})

        self.add_nodes([Node(price, strength, name=label, tags=[TAG])])


class FastStrength(_Indicator):
    """The RSI of six hours."""

    label = "rsi_6h"
    period = 6


class SlowStrength(_Indicator):
    """The RSI of a day."""

    label = "rsi_24h"
    period = 24


class IndicatorCorrelation(Strategy):
    """The correlation of all tagged indicators over a day. It reads new indicators as soon as they appear."""

    def setup(self) -> None:
        def correlation(view: CacheView) -> pd.DataFrame:
            frames = [
                aligned.frame
                for aligned in view.align_frames([(node_id, "1h") for node_id in view], window=24)
            ]
            return pd.concat(frames, axis=1).corr() if frames else pd.DataFrame()

        self.add_nodes(
            [
                TagQueryNode(
                    query_tags=[TAG],
                    interval="1h",
                    period=24,
                    match_mode=MatchMode.ANY,
                    compute_fn=correlation,
                    name="correlation",
                )
            ]
        )
