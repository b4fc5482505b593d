"""Hourly indicators of EUR/USD that other strategies find by their tag, and one that looks for them. They hold nothing: they are there for what they compute."""

import pandas as pd

from qmtl_sdk import CacheView, MatchMode, Node, Strategy, StreamInput, TagQueryNode

TAG = "ta-indicator"


class _Indicator(Strategy):
    """The share of the gains in all changes of the last `period` hours, in percent (a relative strength index of simple means)."""

    label, period = "", 0

    def setup(self) -> None:
        price = StreamInput(tags=["EURUSD", "price"], interval="1h", period=self.period + 1)
        label = self.label

        def strength(view: CacheView) -> pd.DataFrame:
            change = view[price].frame["close"].diff()
            gain, loss = change.clip(lower=0).sum(), -change.clip(upper=0).sum()
            return pd.DataFrame({label: [100 * gain / (gain + loss) if gain + loss else 50.0]})

        self.add_nodes([Node(price, strength, name=label, tags=[TAG])])


class FastStrength(_Indicator):
    label, period = "rsi_6h", 6


class SlowStrength(_Indicator):
    label, period = "rsi_24h", 24


class IndicatorCorrelation(Strategy):
    """How the indicators that there are move together over a day; it takes in new ones while it runs."""

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
