"""The view of a compute function, and the strategies of the appendix, copied except for the import lines."""

import numpy as np
import pandas as pd
import pytest

from qmtl_sdk import CacheView, MatchMode, Node, QmtlError, Runner, Strategy, StreamInput, TagQueryNode  # noqa: F401
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.dag import TAG_QUERY
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.nodes.view import Window
from tests.spec.correlation import CorrelationStrategy, calc_corr
from tests.support.frames import bars, walk

HOUR = 3600 * 10**9


def window(node_id: str, interval: int, opens: list[int], **columns: list[float]) -> Window:
    return Window(
        node_id,
        node_id,
        interval,
        np.array(opens, dtype="int64") * 10**9,
        {name: np.array(values) for name, values in columns.items()},
    )


# the spec's appendix, first strategy
# fmt: off
class GeneralStrategy(Strategy):
    def setup(self):  # type: ignore[no-untyped-def]
        price_stream = StreamInput(
            interval="60s",    # 1-minute bars
            period=30           # require the last 30 bars
        )

        def generate_signal(view) -> pd.DataFrame:  # type: ignore[no-untyped-def]
            price = view.as_frame(price_stream, 60, columns=["close"]).validate_columns(["close"])
            momentum = price.frame["close"].pct_change().rolling(5).mean()
            signal = (momentum > 0).astype(int)
            return pd.DataFrame({"signal": signal})

        signal_node = Node(
            input=price_stream,
            compute_fn=generate_signal,
            name="momentum_signal"
        )

        self.add_nodes([price_stream, signal_node])


# fmt: on


def test_the_appendix_strategy_runs() -> None:
    """Trap 12: the frames handed to it had another library's methods."""
    build = BuiltStrategy(GeneralStrategy)
    price, signal = sorted(build.nodes, key=lambda node: len(node.inputs))
    close = walk(300)
    tape, check = compute(signal, {price.node_id: NodeOutput(bars(close))})
    assert check.verdict == "equal"
    expected = (pd.Series(close).pct_change().rolling(5).mean() > 0).astype(int)
    np.testing.assert_array_equal(tape.bars.columns["signal"][29:], expected[29:])


def test_the_appendix_tag_query_builds_and_has_its_node_id() -> None:
    build = BuiltStrategy(CorrelationStrategy)
    query = next(node for node in build.nodes if node.node_type == TAG_QUERY)
    assert query.node_id.startswith("blake3:")
    assert BuiltStrategy(CorrelationStrategy).dag.strategy_id == build.dag.strategy_id


def test_the_function_of_a_tag_query_computes_over_what_it_finds() -> None:
    opens = [3600 * i for i in range(30)]
    a = window("a", 3600, opens, a=list(np.arange(30.0)))
    b = window("b", 3600, opens, b=list(-np.arange(30.0)))
    corr = calc_corr(CacheView({"a": a, "b": b}))
    assert corr.loc["a", "b"] == pytest.approx(-1)
    assert calc_corr(CacheView({})).empty


def test_a_bar_is_handed_its_window_and_not_itself_alone() -> None:
    """Trap 12: a replay mode handed nodes one bar and no window."""
    price = StreamInput(tags=["x"], interval=60)
    lengths: set[int] = set()
    compute(
        Node(price, lambda v: lengths.add(len(v[price])) or 1.0, period=30),
        {price.node_id: NodeOutput(bars(walk(100)))},
    )  # type: ignore[arg-type, func-returns-value]
    assert 30 in lengths
    assert min(lengths) == 30


def test_ways_to_a_column() -> None:
    view = CacheView({"a": window("a", 60, [0, 60], close=[1.0, 2.0], volume=[5.0, 6.0])})
    assert view["a"]["close"].tolist() == [1.0, 2.0]  # type: ignore[union-attr]
    assert view["a"][60] is view["a"]
    assert view["a"].values.tolist() == [1.0, 2.0]
    assert np.asarray(view["a"]).tolist() == [1.0, 2.0]
    assert str(view["a"].frame.index.tz) == "UTC"
    assert list(view) == ["a"]
    assert view.as_frame("a", "1m", columns=["volume"], window=1).frame["volume"].tolist() == [6.0]


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (lambda v: v["b"], "E_NODE_INPUT"),
        (lambda v: v["a"]["open"], "E_COLUMN_MISSING"),
        (lambda v: v.as_frame("a", 60, columns=["open"]), "E_COLUMN_MISSING"),
        (lambda v: v.as_frame("a", 60).validate_columns(["open"]), "E_COLUMN_MISSING"),
        (lambda v: v.as_frame("a", 3600), "E_INTERVAL"),
    ],
)
def test_what_is_not_there_is_named(ask: "object", code: str) -> None:
    view = CacheView({"a": window("a", 60, [0], close=[1.0])})
    with pytest.raises(QmtlError) as caught:
        ask(view)  # type: ignore[operator]
    assert caught.value.code == code
    assert "close" in str(caught.value) or "a" in str(caught.value)


def test_frames_are_aligned_on_closing_times() -> None:
    minutes = window("m", 60, [3540, 3600, 7140, 7200], m=[1.0, 2.0, 3.0, 4.0])
    hours = window("h", 3600, [0, 3600], h=[10.0, 20.0])
    fine, coarse = CacheView({"m": minutes, "h": hours}).align_frames([("m", 60), ("h", "1h")])
    assert fine.frame["m"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert coarse.frame["h"].tolist() == [10.0, 10.0, 20.0, 20.0]
    early = window("m", 60, [0], m=[1.0])
    _, none = CacheView({"m": early, "h": hours}).align_frames([("m", 60), ("h", 3600)])
    assert none.frame["h"].isna().all()
