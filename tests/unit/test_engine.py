"""The engine: batch and bar by bar say the same, and what can't be trusted is found."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qmtl_sdk import CacheView, Node, QmtlError, StreamInput
from qmtl_sdk.compute.engine import Checkpoint, compute
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.compute.parity import ParityCheck
from qmtl_sdk.data.bars import NS, Bars, iso
from tests.support.frames import START, bars, walk

PRICE = StreamInput(tags=["x"], interval=60, period=30)


def run(
    function: Callable[[CacheView], Any], close: "list[float] | np.ndarray", period: int = 5, **options: Any
) -> tuple[NodeOutput, ParityCheck]:
    node = Node(PRICE, function, period=period, name="mine")
    return compute(node, {PRICE.node_id: NodeOutput(bars(close))}, **options)


def by_bar(
    function: Callable[[CacheView], Any], close: "list[float] | np.ndarray", period: int = 5
) -> np.ndarray:
    """What a plain loop over windows gives."""
    tape = NodeOutput(bars(close))
    out = np.full(len(close), np.nan)
    for t in range(period - 1, len(close)):
        node = Node(PRICE, function, period=period)
        window = Bars(
            tape.bars.ts[t + 1 - period : t + 1],
            {"close": tape.bars.columns["close"][t + 1 - period : t + 1]},
            60,
        )
        seen = CacheView(
            {
                PRICE.node_id: __import__("qmtl_sdk.nodes.view", fromlist=["Window"]).Window(
                    PRICE.node_id, "x", 60, window.ts, window.columns
                )
            }
        )
        assert node.compute_fn is not None
        out[t] = np.asarray(node.compute_fn(seen), dtype=float).reshape(-1)[-1]
    return out


FUNCTIONS: dict[str, Callable[[CacheView], Any]] = {
    "momentum": lambda v: (v[PRICE].frame["close"].pct_change().rolling(3).mean() > 0).astype(int),
    "average": lambda v: v[PRICE].frame["close"].rolling(5).mean(),
    "range": lambda v: v[PRICE].frame["close"].rolling(5).max() - v[PRICE].frame["close"].rolling(5).min(),
    "numpy": lambda v: v[PRICE].values * 2 + 1,
    "frame": lambda v: pd.DataFrame({"a": v[PRICE].frame["close"].diff(2)}),
    "number": lambda v: float(v[PRICE].values[-1] - v[PRICE].values.mean()),
    "dropped": lambda v: v[PRICE].frame["close"].diff().dropna(),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(FUNCTIONS)), st.lists(st.floats(1, 1000), min_size=12, max_size=60))
def test_what_the_engine_gives_is_what_windows_give(name: str, close: list[float]) -> None:
    tape, _ = run(FUNCTIONS[name], close)
    values = next(iter(tape.bars.columns.values()))
    np.testing.assert_allclose(values, by_bar(FUNCTIONS[name], close), rtol=1e-7, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(
    ("name", "verdict"),
    [("momentum", "equal"), ("average", "equal"), ("numpy", "equal"), ("number", "bar by bar")],
)
def test_verdicts_of_honest_functions(name: str, verdict: str) -> None:
    assert run(FUNCTIONS[name], walk(500))[1].verdict == verdict


AHEAD: dict[str, Callable[[CacheView], Any]] = {
    "tomorrow's close": lambda v: v[PRICE].frame["close"].shift(-1),
    "normalised by the whole": lambda v: (v[PRICE].values - v[PRICE].values.mean()) / v[PRICE].values.std(),
    "centred average": lambda v: v[PRICE].frame["close"].rolling(5, center=True).mean(),
    "back-filled": lambda v: v[PRICE].frame["close"].where(lambda x: x.diff() > 0).bfill(),
}


@pytest.mark.parametrize("name", sorted(AHEAD))
def test_looking_ahead_is_refused_with_node_and_bar(name: str) -> None:
    with pytest.raises(QmtlError) as caught:
        run(AHEAD[name], walk(500))
    assert caught.value.code == "E_LOOKAHEAD"
    assert caught.value.message.startswith("mine looks ahead at 20")
    assert "rolling(n)" in caught.value.remedy
    assert "one number for the window" in caught.value.remedy
    assert caught.value.details["bar"].endswith("Z")


def test_state_is_refused() -> None:
    calls: list[int] = []
    with pytest.raises(QmtlError, match="two answers") as caught:
        run(lambda v: v[PRICE].values + (calls.append(1) or len(calls)), walk(300))
    assert caught.value.code == "E_STATEFUL"


@pytest.mark.parametrize(
    "function",
    [lambda v: v[PRICE].frame["close"].ewm(span=50).mean(), lambda v: v[PRICE].frame["close"].cummax()],
)
def test_needing_more_than_the_period_is_reported_and_computed_bar_by_bar(
    function: Callable[[CacheView], Any],
) -> None:
    close = walk(300)
    tape, check = run(function, close)
    assert check.verdict == "needs more than its period"
    assert check.bar
    np.testing.assert_allclose(
        next(iter(tape.bars.columns.values())), by_bar(function, close), rtol=1e-9, equal_nan=True
    )


def test_full_parity_compares_every_bar() -> None:
    close = walk(3000)
    close[1500] = 500.0

    def rare(view: CacheView) -> np.ndarray:
        """Wrong in batch for one bar: it remembers the jump for longer than its period."""
        x = view[PRICE].values
        return np.where((x < 499) & (np.arange(len(x)) == 1506) & (len(x) > 100), -1.0, x)

    assert run(rare, close, parity="full")[1].verdict == "needs more than its period"


def test_warm_up_is_missing_and_goes_on_downstream() -> None:
    close = walk(50)
    first, _ = run(lambda v: v[PRICE].values, close, period=5)
    assert first.first == 4
    assert np.isnan(first.bars.columns["value"][:4]).all()
    middle = Node(PRICE, lambda v: v[PRICE].values, period=5)
    seen: list[int] = []

    def later(view: CacheView) -> float:
        seen.append(int(np.isnan(view[middle].values).sum()))
        return 1.0

    last, _ = compute(Node(middle, later, period=3), {middle.node_id: first})
    assert last.first == 6
    assert set(seen) == {0}


def test_an_authors_exception_names_node_bar_and_line() -> None:
    def broken(view: CacheView) -> float:
        if len(view[PRICE]) == 5:
            raise ZeroDivisionError("a mistake")
        return 1.0

    with pytest.raises(QmtlError) as caught:
        run(broken, walk(50))
    assert caught.value.code == "E_COMPUTE_FAILED"
    assert "mine failed at bar 4" in caught.value.message
    assert 'raise ZeroDivisionError("a mistake")' in caught.value.message
    assert "test_engine.py" in caught.value.message


def zero_some_rows(view: CacheView) -> float:
    frame = view[PRICE].frame
    frame.loc[frame.index[1:], "close"] = 0.0
    return 1.0


def zero_a_view(view: CacheView) -> float:
    view.as_frame(PRICE).frame["close"].values[:] = 0.0
    return 1.0


def zero_an_array(view: CacheView) -> float:
    view[PRICE].values[0] = 0.0
    return 1.0


def scale_in_place(view: CacheView) -> float:
    prices = view[PRICE]["close"]
    prices *= 2.0
    return 1.0


def move_times(view: CacheView) -> float:
    view[PRICE].ts[0] = 0
    return 1.0


WRITERS = [zero_some_rows, zero_a_view, zero_an_array, scale_in_place, move_times]


@pytest.mark.parametrize("function", WRITERS)
@pytest.mark.parametrize("parity", ["sample", "full"])
def test_a_function_that_writes_to_its_input_fails_at_its_own_line(
    function: Callable[[CacheView], Any], parity: str
) -> None:
    """A function that zeroed its input changed the prices that returns are computed from."""
    close = walk(50)
    tape = NodeOutput(bars(close.copy()))
    with pytest.raises(QmtlError, match="read-only") as caught:
        compute(Node(PRICE, function, period=5), {PRICE.node_id: tape}, parity=parity)  # type: ignore[arg-type]
    assert caught.value.code == "E_COMPUTE_FAILED"
    code = function.__code__
    assert re.search(rf"line {code.co_firstlineno + 1}|line {code.co_firstlineno + 2}", caught.value.message)
    assert "of test_engine.py: `" in caught.value.message
    assert ".copy()" in caught.value.remedy
    np.testing.assert_array_equal(tape.bars.columns["close"], close)


# pandas replaces a whole column that it can't write to, and warns.
@pytest.mark.filterwarnings("ignore:Setting an item of incompatible dtype:FutureWarning")
@pytest.mark.parametrize("whole", [True, False])
def test_a_frame_is_the_functions_own_and_its_columns_may_be_replaced(whole: bool) -> None:
    def replace(view: CacheView) -> Any:
        frame = view[PRICE].frame
        if whole:
            frame.loc[:, "close"] = 0.0
        frame["mine"] = 1.0
        return frame["mine"]

    close = walk(50)
    tape = NodeOutput(bars(close.copy()))
    output, found = compute(Node(PRICE, replace, period=5), {PRICE.node_id: tape})
    assert found.verdict == "equal"
    assert (output.bars.columns["mine"][4:] == 1.0).all()
    np.testing.assert_array_equal(tape.bars.columns["close"], close)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("text", "E_COMPUTE_OUTPUT"),
        (np.ones((5, 2)), "E_COMPUTE_OUTPUT"),
        ({"a": ["x"] * 5}, "E_COMPUTE_OUTPUT"),
    ],
)
def test_what_is_no_output_is_refused(answer: object, code: str) -> None:
    with pytest.raises(QmtlError) as caught:
        run(lambda v: answer, walk(50))
    assert caught.value.code == code


def test_a_last_row_of_another_time_than_the_bar_is_refused() -> None:
    start = START // (300 * NS) * 300 * NS
    inputs = {PRICE.node_id: NodeOutput(bars(np.arange(17.0), 60, start))}
    coarse = Node(PRICE, lambda v: v[PRICE].frame[["close"]], interval=300, period=5, name="coarse")
    with pytest.raises(QmtlError) as caught:
        compute(coarse, inputs)
    assert caught.value.code == "E_OUTPUT_TIME"
    assert caught.value.message.startswith("coarse returned a frame whose last row has the time 20")
    assert (caught.value.details["row"], caught.value.details["bar"]) == (iso(start + 240 * NS), iso(start))
    assert all(time in caught.value.message for time in caught.value.details.values())


@pytest.mark.parametrize("whole", [True, False])
def test_a_batch_row_that_is_no_bar_of_the_node_is_refused(whole: bool) -> None:
    def halves(view: CacheView) -> pd.DataFrame:
        """Rows every 30 s, at times between the bars, too."""
        frame = view[PRICE].frame
        return frame.resample("30s").ffill() if whole else frame.shift(freq="30s")

    with pytest.raises(QmtlError) as caught:
        run(halves, walk(50))
    assert caught.value.code == "E_OUTPUT_TIME"
    assert caught.value.details["row"] == iso(START + 30 * NS)
    assert caught.value.details["bar"] == iso(START)


def test_a_dropped_row_stays_missing_unless_the_window_ends_with_another_bar() -> None:
    close = walk(300)
    missing = close < np.median(close)

    def above(view: CacheView) -> pd.DataFrame:
        frame = view[PRICE].frame
        return frame[frame["close"] >= np.median(close)]

    values = run(above, close, period=1)[0].bars.columns["close"]
    np.testing.assert_array_equal(np.isnan(values), missing)
    with pytest.raises(QmtlError) as caught:
        run(above, close, period=3)
    assert caught.value.code == "E_OUTPUT_TIME"


@pytest.mark.parametrize("zone", [None, "Asia/Tokyo"])
def test_the_zone_of_a_time_index_does_not_matter(zone: str | None) -> None:
    def moved(view: CacheView) -> "pd.Series[Any]":
        close = view[PRICE].frame["close"]
        return close.tz_localize(None) if zone is None else close.tz_convert(zone)

    output, check = run(moved, walk(100))
    assert check.verdict == "equal"
    np.testing.assert_array_equal(output.bars.columns["close"][4:], walk(100)[4:])


def test_one_row_for_the_window_is_computed_bar_by_bar() -> None:
    output, check = run(lambda v: v[PRICE].frame[["close"]].tail(1), walk(100))
    assert check.verdict == "bar by bar"
    np.testing.assert_array_equal(output.bars.columns["close"][4:], walk(100)[4:])


def test_too_little_history_says_so() -> None:
    with pytest.raises(QmtlError, match="needs 30 bars") as caught:
        run(lambda v: v[PRICE].values, walk(10), period=30)
    assert caught.value.code == "E_HISTORY_SHORT"


def test_a_slower_input_is_seen_from_its_close_on() -> None:
    hour = StreamInput(tags=["h"], interval=3600)
    start = START // (3600 * NS) * 3600 * NS
    minutes, hours = bars(np.arange(180.0), 60, start), bars([1.0, 2.0, 3.0], 3600, start)
    node = Node(
        [PRICE, hour], lambda v: float(v[hour].values[-1]) if len(v[hour]) else np.nan, interval=60, period=1
    )
    tape, check = compute(node, {PRICE.node_id: NodeOutput(minutes), hour.node_id: NodeOutput(hours)})
    assert check.verdict == "bar by bar"
    seen = tape.bars.columns["value"]
    assert np.isnan(seen[:59]).all()
    assert (seen[59:119] == 1.0).all()
    assert (seen[119:179] == 2.0).all()
    assert seen[179] == 3.0


def test_a_coarser_node_computes_when_its_own_bar_closes() -> None:
    start = START // (300 * NS) * 300 * NS
    node = Node(PRICE, lambda v: float(v[PRICE].values.sum()), interval=300, period=5)
    tape, _ = compute(node, {PRICE.node_id: NodeOutput(bars(np.arange(17.0), 60, start))})
    assert tape.bars.columns["value"].tolist() == [10.0, 35.0, 60.0]
    assert (np.diff(tape.bars.ts) == 300 * NS).all()


def test_a_finer_node_than_its_inputs_is_refused() -> None:
    with pytest.raises(QmtlError, match="finer"):
        compute(Node(PRICE, lambda v: 1.0, interval=30), {PRICE.node_id: NodeOutput(bars(walk(20)))})


def test_an_interrupted_computation_goes_on_where_it_was_saved() -> None:
    close, saved = walk(1000), {}
    calls: list[int] = []

    def slow(view: CacheView) -> float:
        calls.append(1)
        return float(view[PRICE].values[-1])

    whole, _ = run(
        slow,
        close,
        checkpoint=Checkpoint(
            save=lambda rows, done: saved.update(
                rows={k: v[:done].copy() for k, v in rows.items()}, done=done
            )
        ),
    )
    before = len(calls)
    again, _ = run(slow, close, checkpoint=Checkpoint(rows=saved["rows"], done=saved["done"]))
    assert len(calls) - before == 1000 - saved["done"]
    np.testing.assert_array_equal(again.bars.columns["value"], whole.bars.columns["value"])


def test_windows_are_slices_and_not_copies() -> None:
    close = walk(50)
    tape = NodeOutput(bars(close))
    seen: list[np.ndarray] = []
    compute(Node(PRICE, lambda v: seen.append(v[PRICE]["close"]) or 1.0, period=5), {PRICE.node_id: tape})  # type: ignore[arg-type, func-returns-value]
    assert all(np.shares_memory(window, tape.bars.columns["close"]) for window in seen)
