"""Bar by bar, as bars close, a strategy says what its batch run says."""

import resource
from typing import Any

import numpy as np
import pandas as pd
import pytest

from qmtl_sdk import CacheView, Node, Strategy, StreamInput, TagQueryNode
from qmtl_sdk.compute.engine import compute
from qmtl_sdk.compute.live import LiveEngine, OutputRow
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.data.bars import NS, Bars, iso
from qmtl_sdk.nodes.strategy import BuiltStrategy

START = 1_600_000_000 // 86_400 * 86_400 * NS


def minute(length: int, seed: int = 1, gaps: bool = False, interval: int = 60) -> Bars:
    rng = np.random.default_rng(seed)
    ts = START + np.arange(length) * interval * NS
    if gaps:
        ts = ts[rng.random(length) > 0.2]
    close = 100 * np.exp(np.cumsum(rng.normal(0, 1e-3, len(ts))))
    return Bars(ts, {"close": close, "volume": rng.integers(1, 100, len(ts)).astype(float)}, interval)


class Several(Strategy):
    """Frames, windows, numbers, an hour on minutes, and minutes that look at the hour."""

    def setup(self) -> None:
        a = StreamInput(tags=["A"], interval="1m", period=30)
        b = StreamInput(tags=["B"], interval="1m", period=30)

        def average(view: CacheView) -> pd.DataFrame:
            return pd.DataFrame({"average": view.as_frame(a, "1m").frame["close"].rolling(20).mean()})

        def spread(view: CacheView) -> Any:
            x, y = view.align_frames([(a, "1m"), (b, "1m")])
            return (x.frame["close"] - y.frame["close"]).rolling(5).std()

        mean = Node(a, average, name="average")
        wide = Node([a, b], spread, name="spread", period=8)
        hourly = Node(
            a,
            lambda view: {"high": float(view[a]["close"].max()), "bars": float(len(view[a]))},
            name="hourly",
            interval="1h",
            period=60,
        )
        both = Node(
            [mean, hourly],
            lambda view: float(view[mean].values[-1] - view[hourly]["high"][-1]),
            name="both",
            interval="1m",
            period=2,
        )
        two_hours = Node(
            hourly, lambda view: float(view[hourly]["high"].max()), name="two hours", interval="2h", period=2
        )
        self.add_nodes([mean, wide, both, two_hours])


def batch(build: BuiltStrategy, inputs: dict[str, Bars]) -> dict[str, NodeOutput]:
    tapes: dict[str, NodeOutput] = {}
    for node in build.nodes:
        tapes[node.node_id] = (
            NodeOutput(inputs[node.node_id]) if isinstance(node, StreamInput) else compute(node, tapes)[0]
        )
    return tapes


def by_close(
    inputs: dict[str, Bars], after: int = -(2**63)
) -> list[tuple[int, dict[str, tuple[int, dict[str, float]]]]]:
    found: dict[int, dict[str, tuple[int, dict[str, float]]]] = {}
    for node_id, bars in inputs.items():
        for i, close in enumerate(bars.closes):
            if close > after:
                found.setdefault(int(close), {})[node_id] = (
                    int(bars.ts[i]),
                    {name: float(values[i]) for name, values in bars.columns.items()},
                )
    return sorted(found.items())


def live(
    engine: LiveEngine, bars: list[tuple[int, dict[str, tuple[int, dict[str, float]]]]]
) -> list[OutputRow]:
    return [output for close, rows in bars for output in engine.advance(close, rows)]


def same(outputs: list[OutputRow], tapes: dict[str, NodeOutput], after: int = -(2**63)) -> int:
    """Compare every row with the batch's; how many were compared."""
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for output in outputs:
        assert output.fault is None, output.fault
        assert output.ts not in rows.setdefault(output.node.node_id, {})
        rows[output.node.node_id][output.ts] = output.values
    count = 0
    for node_id, mine in rows.items():
        bars = tapes[node_id].bars
        expected = [int(ts) for ts, close in zip(bars.ts, bars.closes, strict=True) if close > after]
        assert sorted(mine) == expected, node_id
        for i in range(len(bars) - len(expected), len(bars)):
            for name, values in bars.columns.items():
                assert mine[int(bars.ts[i])].get(name, np.nan) == pytest.approx(
                    values[i], rel=1e-9, abs=1e-12, nan_ok=True
                ), (node_id, i, name)
            count += 1
    return count


def inputs_of(build: BuiltStrategy, length: int, gaps: bool, seed: int = 1) -> dict[str, Bars]:
    streams = [node for node in build.nodes if isinstance(node, StreamInput)]
    return {node.node_id: minute(length, seed + i, gaps) for i, node in enumerate(streams)}


@pytest.mark.parametrize("gaps", [False, True])
def test_five_thousand_bars_say_what_the_batch_says_bar_for_bar(gaps: bool) -> None:
    build = BuiltStrategy(Several)
    inputs = inputs_of(build, 5000, gaps)
    compared = same(live(LiveEngine(build.nodes), by_close(inputs)), batch(build, inputs))
    assert compared > (10_000 if not gaps else 8000)


@pytest.mark.parametrize(
    ("cut", "seed", "gaps"), [(400, 1, False), (420, 2, False), (431, 3, True), (479, 4, True)]
)
def test_it_goes_on_where_a_batch_ended(cut: int, seed: int, gaps: bool) -> None:
    build = BuiltStrategy(Several)
    inputs = inputs_of(
        build, 545, gaps, seed
    )  # not at a whole hour: there a batch waits for one more minute of the hour's own stream
    moment = START + cut * 60 * NS
    before = {node_id: Bars(*_until(bars, moment), bars.interval) for node_id, bars in inputs.items()}
    tapes = batch(build, before)
    engine = LiveEngine(build.nodes, tapes)
    outputs = live(engine, by_close(inputs, moment))
    whole = batch(build, inputs)
    rows = {(output.node.node_id, output.ts) for output in outputs}
    for node in build.nodes:
        if isinstance(node, StreamInput):
            continue
        known = set(map(int, tapes[node.node_id].bars.ts))
        assert known | {ts for node_id, ts in rows if node_id == node.node_id} == set(
            map(int, whole[node.node_id].bars.ts)
        ), node.label
    for output in outputs:
        bars = whole[output.node.node_id].bars
        i = int(np.searchsorted(bars.ts, output.ts))
        for name, values in bars.columns.items():
            assert output.values.get(name, np.nan) == pytest.approx(
                values[i], rel=1e-9, abs=1e-12, nan_ok=True
            )


def _until(bars: Bars, moment: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    end = int(np.searchsorted(bars.closes, moment, side="right"))
    return bars.ts[:end], {name: values[:end] for name, values in bars.columns.items()}


def test_memory_stays_flat_over_fifty_thousand_bars() -> None:
    stream = StreamInput(tags=["A"], interval="1m", period=30)
    mean = Node(stream, lambda view: float(view[stream]["close"].mean()), name="mean")
    hourly = Node(mean, lambda view: float(view[mean].values[-1]), name="hourly", interval="1h", period=5)

    class Plain(Strategy):
        def setup(self) -> None:
            self.add_nodes([mean, hourly])

    engine, used = LiveEngine(BuiltStrategy(Plain).nodes), []
    for i in range(50_000):
        ts = START + i * 60 * NS
        for output in engine.advance(ts + 60 * NS, {stream.node_id: (ts, {"close": float(i % 97)})}):
            assert output.fault is None
        if i % 10_000 == 9_999:
            used.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f"memory after 10,000 … 50,000 bars: {', '.join(f'{value:.1f}' for value in used)} MiB")
    assert used[-1] - used[0] < 5


def test_bars_that_come_twice_or_go_back_in_time_are_dropped_and_counted() -> None:
    stream = StreamInput(tags=["A"], interval="1m", period=1)
    node = Node(stream, lambda view: float(view[stream]["close"][-1]), name="last")

    class Plain(Strategy):
        def setup(self) -> None:
            self.add_nodes([node])

    engine = LiveEngine(BuiltStrategy(Plain).nodes)

    def bar(number: int) -> list[float]:
        ts = START + number * 60 * NS
        return [
            output.values["value"]
            for output in engine.advance(ts + 60 * NS, {stream.node_id: (ts, {"close": float(number)})})
        ]

    assert [bar(n) for n in (0, 1, 1, 0, 2)] == [[0.0], [1.0], [], [], [2.0]]
    assert engine.late == 2


def test_a_function_that_fails_leaves_a_missing_row_and_says_why() -> None:
    stream = StreamInput(tags=["A"], interval="1m", period=1)

    def shaky(view: CacheView) -> float:
        if view[stream]["close"][-1] == 1:
            raise ValueError("one")
        return 7.0

    node = Node(stream, shaky, name="shaky")

    class Plain(Strategy):
        def setup(self) -> None:
            self.add_nodes([node])

    engine, found = LiveEngine(BuiltStrategy(Plain).nodes), []
    for i in range(3):
        ts = START + i * 60 * NS
        found += list(engine.advance(ts + 60 * NS, {stream.node_id: (ts, {"close": float(i)})}))
    assert [output.values for output in found] == [{"value": 7.0}, {}, {"value": 7.0}]
    assert found[1].fault is not None
    assert "shaky failed" in str(found[1].fault)
    assert "one" in str(found[1].fault)


def test_a_last_row_of_another_time_than_the_bar_is_a_fault_with_both_times() -> None:
    stream = StreamInput(tags=["A"], interval="5m", period=12)
    node = Node(stream, lambda view: view[stream].frame, name="hourly", interval="1h", period=12)

    class Hourly(Strategy):
        def setup(self) -> None:
            self.add_nodes([node])

    engine, found = LiveEngine(BuiltStrategy(Hourly).nodes), []
    for i in range(12):
        ts = START + i * 300 * NS
        found += list(engine.advance(ts + 300 * NS, {stream.node_id: (ts, {"close": float(i)})}))
    assert [output.values for output in found] == [{}]
    fault = found[0].fault
    assert fault is not None
    assert fault.code == "E_OUTPUT_TIME"
    assert (fault.details["row"], fault.details["bar"]) == (iso(START + 3300 * NS), iso(START))
    assert "hourly" in fault.message


def test_a_tag_query_takes_in_another_queue_without_a_change_of_its_identity() -> None:
    def columns(view: CacheView) -> dict[str, float]:
        return {view[node_id].label: float(view[node_id].values[-1]) for node_id in view}

    query = TagQueryNode(query_tags=["ta"], interval="1h", period=3, compute_fn=columns)
    after = Node(query, lambda view: float(len(view[query].columns)), name="after", period=1)

    class Query(Strategy):
        def setup(self) -> None:
            self.add_nodes([query, after])

    engine = LiveEngine(BuiltStrategy(Query).nodes)
    identity, hour = query.node_id, 3600 * NS

    def tick(number: int, **values: float) -> dict[str, dict[str, float]]:
        ts = START + number * hour
        rows = {query.node_id: {f"blake3:{name}": (ts, {"value": value}) for name, value in values.items()}}
        return {output.node.label: output.values for output in engine.advance(ts + hour, {}, rows)}

    engine.add_upstream(query, "blake3:rsi", "rsi", [])
    assert tick(0, rsi=1.0) == {query.label: {"rsi": 1.0}, "after": {"value": 1.0}}
    engine.add_upstream(query, "blake3:mfi", "mfi", [(START, {"value": 5.0})])
    assert tick(1, rsi=2.0, mfi=6.0) == {query.label: {"rsi": 2.0, "mfi": 6.0}, "after": {"value": 2.0}}
    engine.remove_upstream(query, "blake3:rsi")
    assert tick(2, mfi=7.0)[query.label] == {"mfi": 7.0}
    assert (query.node_id, engine.upstreams(query)) == (identity, ["blake3:mfi"])


@pytest.mark.parametrize("form", ["frame", "array", "times"])
def test_a_function_that_writes_to_its_input_changes_nothing_that_others_read(form: str) -> None:
    price = StreamInput(tags=["A"], interval="1m", period=30)

    def write(view: CacheView) -> float:
        if form == "frame":
            frame = view[price].frame
            frame.loc[frame.index[1:], "close"] = 0.0
        elif form == "array":
            view[price]["close"][:] = 0.0
        else:
            view[price].ts[:] = 0
        return 1.0

    class Writing(Strategy):
        def setup(self) -> None:
            writer = Node(price, write, name="writer", period=3)
            reader = Node(price, lambda view: float(view[price]["close"].sum()), name="reader", period=3)
            self.add_nodes([price, writer, reader])

    build = BuiltStrategy(Writing)
    inputs = inputs_of(build, 20, gaps=False)
    outputs = live(LiveEngine(build.nodes), by_close(inputs))
    faults = [output.fault for output in outputs if output.node.label == "writer"]
    assert faults[:2] == [None, None]
    assert len(faults) == 20
    for fault in faults[2:]:
        assert fault is not None
        assert fault.code == "E_COMPUTE_FAILED"
        assert "test_live.py: `" in fault.message
        assert "read-only" in fault.message
        assert ".copy()" in fault.remedy
    close = next(iter(inputs.values())).columns["close"]
    sums = [output.values["value"] for output in outputs if output.node.label == "reader" and output.values]
    np.testing.assert_allclose(sums, [close[i - 2 : i + 1].sum() for i in range(2, 20)])
