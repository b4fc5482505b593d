"""Returns and metrics, by worked figures."""

import contextlib
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmtl_sdk import Node, QmtlError, Strategy, StreamInput
from qmtl_sdk.compute.output import NodeOutput
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.contracts.worlds import Execution
from qmtl_sdk.data.bars import NS, Bars
from qmtl_sdk.data.calendars import periods_per_year
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.reports.artifact import decode, encode
from qmtl_sdk.reports.metrics import Metric, Sample, drawdown, equity, linearity, measure, sharpe
from qmtl_sdk.reports.returns import Returns, returns_of
from tests.support import ROOT
from tests.support.frames import DAY, series

FREE = Execution()


def test_the_worked_figures() -> None:
    """Trap 9: maximum drawdown was negative in one place and expected positive in another."""
    r = np.array([0.10, -0.50, 0.20])
    np.testing.assert_allclose(equity(r), [1.10, 0.55, 0.66])
    assert drawdown(r).max() == pytest.approx(0.5)
    found = measure(series([0.0, 0.10, -0.50, 0.20]), 252)
    assert found["max_drawdown"] == pytest.approx(0.5)
    assert found["total_return"] == pytest.approx(-0.34)
    assert found["win_rate"] == pytest.approx(2 / 3)


def test_sharpe_is_annualised() -> None:
    """Trap 9."""
    r = np.array([0.0, 0.01, -0.005, 0.02])
    assert sharpe.compute(Sample(series(r), 252)) == pytest.approx(r.mean() / r.std(ddof=1) * np.sqrt(252))
    assert sharpe.compute(Sample(series([0.01] * 5), 252)) is None
    assert sharpe.compute(Sample(series([0.1]), 252)) is None


def test_trades_are_changes_of_position() -> None:
    """Trap 9: “trades” counted returns."""
    found = measure(series([0.0] * 6, {"a": [0, 1, 1, 0, -1, -1], "b": [1, 1, 1, 1, 1, 1]}), 252)
    assert found["trades"] == 4
    assert found["turnover"] == pytest.approx((3 + 1) / 2 / (6 / 252))
    assert measure(series([0.0, 0.1]), 252)["trades"] is None


def test_linearity() -> None:
    assert linearity.compute(Sample(series([0.01] * 50), 252)) == pytest.approx(1.0)
    assert linearity.compute(Sample(series([-0.01] * 50), 252)) == 0.0
    assert linearity.compute(Sample(series([0.0] * 50), 252)) == 0.0


def test_every_metric_is_measured_and_nothing_else() -> None:
    assert measure(series([0.0, 0.01, -0.02]), 252).keys() == set(METRICS.names())


@pytest.mark.parametrize(
    ("calendar", "interval", "periods"),
    [
        ("XNYS", DAY, 252),
        ("XNYS", 3600, 1638),
        ("24/5", 3600, 6240),
        ("24/7", 60, 525_600),
        ("24/7", DAY, 365),
        ("24/7", 7 * DAY, 365 / 7),
        ("XNYS", 7 * DAY, 252 / 5),
    ],
)
def test_periods_a_year(calendar: str, interval: int, periods: float) -> None:
    assert periods_per_year(calendar, interval) == pytest.approx(periods)


class Held(Strategy):
    def __init__(self, columns: dict[str, str] | None = None, weights: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.columns = columns or {"a": "position"}
        self.given = weights

    def setup(self) -> None:
        nodes = []
        for name in self.columns:
            price = StreamInput(tags=[name], interval=DAY)
            nodes.append(Node(price, lambda v, price=price: v[price].values, name=name))
        self.add_nodes(nodes, weights=dict(zip(nodes, self.given, strict=False)))


def returns(
    strategy: Held, data: dict[str, tuple[list[float], list[float]]], execution: Execution = FREE
) -> Returns:
    """`data`: by instrument its closes and what its node gave."""
    build = BuiltStrategy(strategy)
    tapes = {}
    for node in build.nodes:
        name = node.tags[0] if isinstance(node, StreamInput) else node.name
        close, held = data[name]
        ts = np.arange(len(close), dtype="int64") * DAY * NS
        columns = (
            {"close": np.array(close)}
            if isinstance(node, StreamInput)
            else {strategy.columns[name]: np.array(held)}
        )
        tapes[node.node_id] = NodeOutput(Bars(ts, columns, DAY))
    return returns_of(build, tapes, execution)


def test_a_position_earns_from_the_next_bar_on() -> None:
    found = returns(Held(), {"a": ([100.0, 110.0, 121.0, 60.5], [0.0, 1.0, 0.0, 1.0])})
    np.testing.assert_allclose(found.values, [0, 0, 0.10, 0])


def test_costs_are_charged_on_each_change() -> None:
    found = returns(
        Held(), {"a": ([100.0] * 5, [1.0, 1.0, -1.0, -1.0, 0.0])}, Execution(fee_bps=10, slippage_bps=5)
    )
    np.testing.assert_allclose(found.values, [0, -0.0015, 0, -0.003, 0])


def test_a_missing_position_is_flat_and_the_first_value_is_zero() -> None:
    found = returns(Held(), {"a": ([100.0, 110.0, 121.0], [np.nan, 1.0, np.nan])})
    np.testing.assert_allclose(found.values, [0, 0, 0.1])


def test_instruments_are_averaged_by_weight() -> None:
    data = {"a": ([100.0, 110.0], [1.0, 1.0]), "b": ([100.0, 100.0], [1.0, 1.0])}
    np.testing.assert_allclose(returns(Held({"a": "position", "b": "position"}), data).values, [0, 0.05])
    np.testing.assert_allclose(
        returns(Held({"a": "position", "b": "position"}, (3.0, 1.0)), data).values, [0, 0.075]
    )


def test_a_signal_is_a_position_of_zero_or_one() -> None:
    found = returns(Held({"a": "signal"}), {"a": ([100.0, 110.0], [1.0, 0.0])})
    np.testing.assert_allclose(found.values, [0, 0.1])
    with pytest.raises(QmtlError, match="keep it 0 or 1"):
        returns(Held({"a": "signal"}), {"a": ([100.0, 110.0], [0.5, 0.0])})
    with pytest.raises(QmtlError, match="between -1 and 1"):
        returns(Held(), {"a": ([100.0, 110.0], [2.0, 0.0])})


def test_a_strategy_without_positions_learns_what_to_do() -> None:
    with pytest.raises(QmtlError) as caught:
        returns(Held({"a": "value"}), {"a": ([100.0, 110.0], [1.0, 0.0])})
    assert caught.value.code == "E_RETURNS_MISSING"
    assert "returns=" in caught.value.remedy


def test_a_named_returns_node_is_taken_as_it_is() -> None:
    class Named(Strategy):
        def setup(self) -> None:
            price = StreamInput(tags=["a"], interval=DAY)
            node = Node(price, lambda v: pd.Series(v[price].values), name="mine")
            self.add_nodes([node], returns=node)

    build = BuiltStrategy(Named)
    tapes = {
        node.node_id: NodeOutput(
            Bars(np.arange(3, dtype="int64") * DAY * NS, {"close": np.array([np.nan, 0.1, np.nan])}, DAY)
        )
        for node in build.nodes
    }
    assert returns_of(build, tapes, FREE).values.tolist() == [0, 0.1, 0]


def test_two_price_streams_of_one_position_are_ambiguous() -> None:
    class Pair(Strategy):
        def setup(self) -> None:
            a, b = (StreamInput(tags=[name], interval=DAY) for name in "ab")
            self.add_nodes([Node([a, b], lambda v: v[a].values, name="pair")])

    build = BuiltStrategy(Pair)
    ts = np.arange(3, dtype="int64") * DAY * NS
    tapes = {
        node.node_id: NodeOutput(
            Bars(ts, {"close" if isinstance(node, StreamInput) else "position": np.ones(3)}, DAY)
        )
        for node in build.nodes
    }
    with pytest.raises(QmtlError, match="several price streams"):
        returns_of(build, tapes, FREE)


@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=30))
def test_an_artifact_carries_the_returns_exactly(values: list[float]) -> None:
    before = series([0.0, *values], {"a": [0.0, *[1.0] * len(values)]})
    after = decode(encode(before))
    np.testing.assert_array_equal(after.values, before.values)
    np.testing.assert_array_equal(after.positions["a"], before.positions["a"])
    assert (after.interval, after.weights) == (before.interval, before.weights)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (series([0.0, float("nan")]), "missing"),
        (series([0.0, float("inf")]), "infinite"),
        (series([0.0, -1.0]), "loses all"),
        (series([0.0, 1e200, 0.1]), "a return is 1e"),
        (series([0.0, *[999.0] * 40]), "compound"),
        (series([0.0, *[-0.999] * 40]), "compound"),
        (series([0.0, 0.1], {"a": [0.0, 1e300]}), "position of a"),
        (
            Returns(np.array([0], dtype="int64"), np.zeros(1), DAY, {"a": np.zeros(1)}, {"a": 2.0}, ()),
            "weight",
        ),
        (series([0.1, 0.1]), "first return"),
        (series([]), "no returns"),
        (Returns(np.array([0, 1], dtype="int64"), np.zeros(2), DAY, {}, {}, ()), "interval"),
        (Returns(np.array([0], dtype="int64"), np.zeros(1), DAY, {"a": np.zeros(1)}, {}, ()), "weights"),
    ],
)
def test_returns_that_can_not_be_are_refused(wrong: Returns, said: str) -> None:
    with pytest.raises(QmtlError, match=said) as caught:
        decode(encode(wrong))
    assert caught.value.code == "E_RETURNS_INVALID"


def test_a_metric_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = Metric("infinite", lambda _: float("inf"))
    monkeypatch.setattr(METRICS, "load", lambda _: beyond)
    with pytest.raises(QmtlError, match="the metric .* is inf") as caught:
        measure(series([0.0, 0.1]), 252)
    assert caught.value.code == "E_RETURNS_INVALID"


def _arrow_file(columns: dict[str, pa.Array], compression: str | None = None) -> bytes:
    """A file of returns with the metadata that `encode` writes, but any columns."""
    plain = pa.ipc.open_file(encode(series([0.0, 0.1]))).schema
    table = pa.table(columns).replace_schema_metadata(plain.metadata)
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


# Rows of a file that is small and decodes to 160 MB.
_MANY = 10_000_000


@pytest.mark.parametrize("form", ["zstd", "lz4", "null", "runs"])
def test_a_small_file_of_many_returns_is_refused_before_it_is_decoded(form: str) -> None:
    """A decompression bomb: 3,154 bytes decoded to 80 MB."""
    zeros = pa.array(np.zeros(_MANY))
    if form == "runs":
        zeros = pa.RunEndEncodedArray.from_arrays(pa.array([_MANY], pa.int32()), pa.array([0.0]))
    elif form == "null":
        zeros = pa.nulls(_MANY)
    compression = form if form in ("zstd", "lz4") else None
    data = _arrow_file({"ts": zeros, "returns": zeros}, compression)
    del zeros
    assert len(data) < 1_000_000
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    tracemalloc.start()
    with pytest.raises(QmtlError, match=r"compressed|not int64 or float64") as caught:
        decode(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.code == "E_RETURNS_INVALID"
    assert peak < 2_000_000
    assert pool.bytes_allocated() - before < 2_000_000


def _sharing_one_buffer(data: bytes, rows: int) -> bytes:
    """Let every column of a file of one batch name the bytes of the first, and cut the others off.

    In the metadata of the batch, a buffer is its offset and its length, each in 8 bytes.
    """
    size = rows * 8
    columns = data.count(struct.pack("<d", 0.5) * rows)
    for number in range(1, columns):
        place = data.rindex(struct.pack("<qq", number * size, size))
        data = data[:place] + struct.pack("<qq", 0, size) + data[place + 16 :]
    body = columns * size
    data = data.replace(struct.pack("<q", body), struct.pack("<q", size))
    values = data.index(struct.pack("<d", 0.5) * rows)
    return data[: values + size] + data[values + body :]


def test_columns_that_share_their_bytes_are_refused() -> None:
    """The file is small without compression: two hundred columns are the bytes of one."""
    rows = 1000
    halves = pa.array(np.full(rows, 0.5))
    data = _arrow_file({f"position:{number}": halves for number in range(200)})
    small = _sharing_one_buffer(data, rows)
    assert len(small) < len(data) / 10
    with pytest.raises(QmtlError, match=r"bytes and decodes to \d+ or more"):
        decode(small)


DECODE = """
import sys
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.reports.artifact import decode
try:
    decode(sys.stdin.buffer.read())
except QmtlError as error:
    print(error.code)
"""


@pytest.mark.parametrize("kind", [0, 3, 9])
def test_a_message_of_another_type_is_refused(kind: int) -> None:
    """pyarrow crashed the process of whoever read such a file, so it is read in one of its own here."""
    data = bytearray(encode(series([0.0, 0.1, -0.1] * 100)))
    message = 16  # after the file's magic, the message's mark and its length
    root = int.from_bytes(data[message : message + 4], "little")
    fields = root - int.from_bytes(data[message + root : message + root + 4], "little", signed=True)
    header_type = int.from_bytes(data[message + fields + 6 : message + fields + 8], "little")
    assert data[message + root + header_type] == 1, "a schema"
    data[message + root + header_type] = kind
    command = [sys.executable, "-c", DECODE]
    done = subprocess.run(command, input=bytes(data), cwd=ROOT, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout.decode().strip()) == (0, "E_RETURNS_INVALID"), done.stderr[-500:]


@given(st.integers(0, 4_000), st.binary(min_size=1, max_size=8))
def test_a_damaged_file_is_refused_or_read_and_nothing_worse(at: int, bytes_: bytes) -> None:
    data = encode(series([0.0, 0.1, -0.1] * 20, {"a": [0.0, 1.0, 1.0] * 20}))
    at %= len(data)
    with contextlib.suppress(QmtlError):
        decode(data[:at] + bytes_ + data[at + len(bytes_) :])


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(QmtlError, match="E_RETURNS_INVALID"):
        decode(data)


def with_meta(meta: bytes) -> bytes:
    """An artifact whose metadata are these bytes."""
    table = pa.table({"ts": pa.array([0, DAY * NS]), "returns": pa.array([0.0, 0.1])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata({b"qmtl.returns": meta})) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    "meta",
    [
        b"[" * 5000,
        b"[" * 5000 + b"]" * 5000,
        b'{"interval": 1e300, "weights": {}, "price_streams": []}',
        b'{"interval": NaN, "weights": {}, "price_streams": []}',
        b'{"interval": 0, "weights": {}, "price_streams": []}',
        b'{"interval": 86400, "weights": {}, "price_streams": [["a"]]}',
        b'{"interval": 86400, "weights": {}, "price_streams": [{}]}',
        b'{"interval": 86400, "weights": {"a": NaN}, "price_streams": []}',
        b'{"interval": 86400, "weights": [], "price_streams": "abc"}',
        b"5",
    ],
)
def test_metadata_that_cannot_be_are_refused(meta: bytes) -> None:
    """Some raised a RecursionError or a TypeError later on, an error of the Gateway."""
    with pytest.raises(QmtlError, match="E_RETURNS_INVALID") as caught:
        decode(with_meta(meta))
    assert len(str(caught.value)) < 600
    assert decode(with_meta(b'{"interval": 86400, "weights": {}, "price_streams": []}'))


def test_an_artifact_has_a_limit_of_columns() -> None:
    table = pa.table({f"c{n}": pa.array([], pa.float64()) for n in range(5003)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(QmtlError, match="5003 columns"):
        decode(sink.getvalue().to_pybytes())
