"""Files of bars: their faults named, their fingerprints, gaps, streams and replay."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qmtl_sdk import CsvSource, ParquetSource, QmtlError, StreamInput
from qmtl_sdk.contracts.dag import Dag
from qmtl_sdk.contracts.worlds import Preset, WorldSpec
from qmtl_sdk.data.bars import NS, Bars, combined, fingerprint
from qmtl_sdk.data.calendars import missing
from qmtl_sdk.data.inspection import inspect_world
from qmtl_sdk.data.market import market_data, require_no_gap
from qmtl_sdk.data.presets import bind, load, newest_close
from tests.support.worlds import world

GOOD = "Date,Open,Close,Note\n2024-01-01,1,1.5,a\n2024-01-02,2,2.5,b\n2024-01-04,3,3.5,c\n"


def csv(tmp_path: Path, text: str, name: str = "x.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", "E_DATA_EMPTY", "empty"),
        ("date,close\n", "E_DATA_EMPTY", "no bars"),
        ("close\n1\n", "E_DATA_SCHEMA", "no time column"),
        ("date,name\n2024-01-01,a\n", "E_DATA_SCHEMA", "no column of numbers"),
        ("date,close\nyesterday,1\n", "E_DATA_SCHEMA", "'yesterday' in date is not a time (row 1)"),
        ("date,close\n2024-01-01,1\n2024-01-02,x\n", "E_DATA_SCHEMA", "'x' in close is no number (row 2)"),
        ("date,close\n2024-01-02,1\n2024-01-01,1\n", "E_DATA_UNSORTED", "goes back in time at 2024-01-01"),
        ("date,close\n2024-01-01,1\n2024-01-01,1\n", "E_DATA_DUPLICATE", "two bars at 2024-01-01"),
        ("date,close\n2024-01-01,1\n2024-01-01T12:00,1\n", "E_DATA_MISALIGNED", "43200 s apart"),
        ("date,close\n2024-01-01,inf\n", "E_DATA_SCHEMA", "infinite"),
        (
            "date,close\n13/01/2024,3\n02/01/2024,1\n",
            "E_DATA_SCHEMA",
            "'13/01/2024' in date may have the day",
        ),
        ("date,close\n2024-01-01,1\n2.1.2024,1\n", "E_DATA_SCHEMA", "the day or the month first (row 2)"),
        ("date,time,close\n2024-01-01,10:00,1\n", "E_DATA_SCHEMA", "'10:00' in time has no date (row 1)"),
        ("date;close\n2024-01-01;1\n", "E_DATA_SCHEMA", "separates its columns by ';'"),
        ('date,close,volume\n2024-01-01,"1,234.5",1\n', "E_DATA_SCHEMA", "'1,234.5' in close is no number"),
        ("date,close,volume\n2024-01-01,1 234,1\n", "E_DATA_SCHEMA", "'1 234' in close is no number (row 1)"),
        ("date,close,volume\n2024-01-01,$12,1\n", "E_DATA_SCHEMA", "'$12' in close is no number (row 1)"),
        ("date,symbol,close\n2024-01-01,A,1\n2024-01-01,B,1\n", "E_DATA_SCHEMA", "several streams (A, B)"),
    ],
)
def test_a_fault_is_named_with_its_place(tmp_path: Path, text: str, code: str, said: str) -> None:
    with pytest.raises(QmtlError) as caught:
        CsvSource(csv(tmp_path, text), interval="1d").read()
    assert caught.value.code == code
    assert said in caught.value.message
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(QmtlError, match="E_DATA_NOT_FOUND"):
        CsvSource(tmp_path / "none.csv", interval="1d").read()
    with pytest.raises(QmtlError, match="is not Parquet"):
        ParquetSource(csv(tmp_path, GOOD, "x.parquet"), interval="1d").read()


@pytest.mark.parametrize(
    "column",
    [
        ["2024-01-01", "2024-01-02"],
        ["2024-01-01T00:00:00Z", "2024-01-02T00:00:00+00:00"],
        [1704067200, 1704153600],
        [1704067200000, 1704153600000],
        [1704067200000000000, 1704153600000000000],
    ],
)
def test_times_in_every_form_are_the_same(tmp_path: Path, column: list[object]) -> None:
    path = tmp_path / "x.csv"
    pd.DataFrame({"TS": column, "Close": [1, 2]}).to_csv(path, index=False)
    bars = CsvSource(path, interval="1d").read()
    assert bars.ts.tolist() == [1704067200 * NS, 1704153600 * NS]
    assert list(bars.columns) == ["close"]


def test_csv_and_parquet_of_one_content_have_one_fingerprint(tmp_path: Path) -> None:
    path = csv(tmp_path, GOOD)
    pd.read_csv(path).to_parquet(tmp_path / "x.parquet")
    one, other = (
        fingerprint({"s": source.read()})
        for source in (CsvSource(path, interval="1d"), ParquetSource(tmp_path / "x.parquet", interval="1d"))
    )
    assert one == other
    changed = csv(tmp_path, GOOD.replace("2.5", "2.6"), "y.csv")
    assert fingerprint({"s": CsvSource(changed, interval="1d").read()}) != one


def test_a_fingerprint_is_of_content_and_not_of_its_looks() -> None:
    ts = np.array([0, NS], dtype="int64")

    def of(*values: float) -> str:
        return fingerprint({"s": Bars(ts, {"a": np.array(values)}, 1)})

    assert of(0.0, 1.0) == of(-0.0, 1.0)
    assert of(float("nan"), 1.0) == of(float("-nan"), 1.0)
    assert of(0.0, 1.0) != of(1.0, 0.0)
    assert fingerprint({"s": Bars(ts, {"a": np.ones(2)}, 1)}) != fingerprint(
        {"t": Bars(ts, {"a": np.ones(2)}, 1)}
    )
    assert combined(["b", "a"]) == combined(["a", "b", "a"])
    assert combined(["a"]) == "a"


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = csv(tmp_path, GOOD)
    preset = Preset(name="p", source="csv", path=str(path), interval="1d", streams={"X": ("x",)})  # type: ignore[arg-type]
    before = market_data(preset).fingerprint()
    csv(tmp_path, GOOD + "2024-01-05,4,4.5,d\n")
    assert len(load(preset, "X")) == 4
    assert market_data(preset).fingerprint() != before


def test_gaps_are_facts_by_the_markets_calendar() -> None:
    def bars(times: list[str], interval: int) -> Bars:
        return Bars(pd.DatetimeIndex(times).as_unit("ns").asi8, {"close": np.ones(len(times))}, interval)

    days = bars(
        ["2024-01-12", "2024-01-16", "2024-01-18"], 86400
    )  # the 15th is a holiday, the 13th and 14th a weekend
    assert pd.DatetimeIndex(missing(days, "XNYS")).strftime("%Y-%m-%d").tolist() == ["2024-01-17"]
    assert len(missing(days, "24/7")) == 4
    hours = bars(
        ["2024-01-12 20:00", "2024-01-14 22:00", "2024-01-15 00:00"], 3600
    )  # Friday to Sunday evening
    assert pd.DatetimeIndex(missing(hours, "24/5")).strftime("%a %H").tolist() == ["Sun 23"]


def test_the_samples_are_whole() -> None:
    spec = WorldSpec.model_validate(world())
    report = inspect_world(spec, datetime(2018, 1, 1, tzinfo=UTC))["prices"]
    assert all(stream["missing"] == 0 for stream in report["streams"].values())  # type: ignore[attr-defined]
    fx = ParquetSource("sample:eurusd_1h.parquet", interval="1h").read()
    assert len(fx) == 6225
    ohlcv = ParquetSource("sample:us_stocks_ohlcv_1d.parquet", interval="1d", symbol="AAPL").read()
    assert {"open", "high", "low", "close", "volume", "adj_close"} <= set(ohlcv.columns)


def dag(stream: StreamInput) -> Dag:
    return Dag(nodes=(stream.record(),))


def test_a_stream_is_bound_by_its_tags_and_interval() -> None:
    spec = WorldSpec.model_validate(world())
    (binding,) = bind(dag(StreamInput(tags=["price", "AAPL"], interval="1d")), spec)
    assert binding.stream == "AAPL"
    (binding,) = bind(dag(StreamInput(tags=["price"], instrument="KO", interval="1d")), spec)
    assert binding.stream == "KO"
    for stream, code in (
        (StreamInput(tags=["price"], interval="1d"), "E_STREAM_AMBIGUOUS"),
        (StreamInput(interval="1d"), "E_STREAM_AMBIGUOUS"),
        (StreamInput(tags=["AAPL"], interval="1h"), "E_STREAM_UNBOUND"),
        (StreamInput(tags=["TSLA"], interval="1d"), "E_STREAM_UNBOUND"),
    ):
        with pytest.raises(QmtlError) as caught:
            bind(dag(stream), spec)
        assert caught.value.code == code
        assert "AAPL at 1d" in caught.value.remedy


def test_a_pattern_names_a_file_a_stream(tmp_path: Path) -> None:
    csv(tmp_path, GOOD, "A.csv")
    csv(tmp_path, GOOD.replace("3.5", "9.5"), "B.csv")
    preset = Preset(
        name="p",
        source="csv",
        path=str(tmp_path / "{stream}.csv"),
        interval="1d",
        streams={"A": ("a",), "B": ("b",)},
    )  # type: ignore[arg-type]
    assert load(preset, "B").columns["close"][-1] == 9.5


def test_nothing_is_read_beyond_as_of(tmp_path: Path) -> None:
    bars = CsvSource(csv(tmp_path, GOOD), interval="1d").read()
    assert len(bars.until(datetime(2024, 1, 2, tzinfo=UTC))) == 1
    assert len(bars.until(datetime(2024, 1, 2, 23, 59, 59, tzinfo=UTC))) == 1
    assert len(bars.until(datetime(2024, 1, 3, tzinfo=UTC))) == 2
    spec = WorldSpec.model_validate(world())
    bindings = bind(dag(StreamInput(tags=["AAPL"], interval="1d")), spec)
    newest, _, youngest = newest_close(bindings, datetime(2017, 12, 30, tzinfo=UTC))
    assert newest == datetime(2017, 12, 30, tzinfo=UTC)
    assert youngest == datetime(2010, 1, 4, tzinfo=UTC)


def preset_over(path: Path, **fields: object) -> Preset:
    given = {"name": "p", "source": "csv", "path": str(path), "interval": "1d", "streams": {"X": ["x"]}}
    return Preset.model_validate({**given, **fields})


def test_a_source_reads_a_range_of_time(tmp_path: Path) -> None:
    data = market_data(preset_over(csv(tmp_path, GOOD)))
    second = datetime(2024, 1, 2, tzinfo=UTC)
    assert data.read("X").columns["close"].tolist() == [1.5, 2.5, 3.5]
    assert data.read("X", start=second).columns["close"].tolist() == [2.5, 3.5]
    assert data.read("X", end=second).columns["close"].tolist() == [1.5], "the second bar has not closed"


def test_a_source_follows_new_bars_and_counts_those_before(tmp_path: Path) -> None:
    path = csv(tmp_path, GOOD)
    data = market_data(preset_over(path))
    everything = data.follow("X", None, 10)
    assert (len(everything.bars), everything.earlier) == (3, 0)
    last = int(everything.bars.closes[-1])
    assert len(data.follow("X", last, 10).bars) == 0
    late = GOOD.replace("2024-01-04", "2024-01-03,9,9.5,late\n2024-01-04")
    csv(tmp_path, late + "2024-01-05,4,4.5,d\n")
    new = data.follow("X", last, 10)
    assert new.bars.columns["close"].tolist() == [4.5]
    assert new.earlier == 4, "one bar appeared before the position"


def test_bars_added_later_do_not_change_the_fingerprint_up_to_a_time(tmp_path: Path) -> None:
    preset = preset_over(csv(tmp_path, GOOD))
    whole = market_data(preset).fingerprint()
    until = datetime(2024, 1, 5, tzinfo=UTC)
    assert market_data(preset).fingerprint(until) == whole
    csv(tmp_path, GOOD + "2024-01-05,4,4.5,d\n")
    assert market_data(preset).fingerprint(until) == whole
    assert market_data(preset).fingerprint() != whole
    csv(tmp_path, GOOD.replace("2.5", "2.6") + "2024-01-05,4,4.5,d\n")
    assert market_data(preset).fingerprint(until) != whole, "a changed bar is another data set"


def test_a_source_lists_its_streams(tmp_path: Path) -> None:
    for name in ("AAPL", "MSFT"):
        csv(tmp_path, GOOD, f"{name}.csv")
    assert market_data(preset_over(tmp_path / "{stream}.csv")).streams() == ("AAPL", "MSFT")
    several = "date,symbol,close\n2024-01-01,A,1\n2024-01-01,B,2\n"
    path = csv(tmp_path, several, "several.csv")
    assert market_data(preset_over(path, streams={"A": ["a"], "B": ["b"]})).streams() == ("A", "B")
    assert market_data(preset_over(csv(tmp_path, GOOD))).streams() == ("X",)


def test_an_unknown_source_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(QmtlError, match="no data source") as caught:
        market_data(preset_over(csv(tmp_path, GOOD), source="cvs"))
    assert caught.value.code == "E_EXTENSION_UNKNOWN"
    assert "csv" in caught.value.remedy
    assert "qmtl.sources" in caught.value.remedy


def test_a_gap_after_the_last_bar_is_noticed_where_gaps_are_forbidden(tmp_path: Path) -> None:
    preset = preset_over(csv(tmp_path, GOOD), on_missing="fail")
    bars = market_data(preset_over(csv(tmp_path, GOOD))).read("X")
    second, third = bars.rows(1, 2), bars.rows(2, 3)
    require_no_gap(preset, "X", second, int(bars.closes[0]))
    with pytest.raises(QmtlError, match="p/X has no bar at 2024-01-03"):
        require_no_gap(preset, "X", third, int(bars.closes[1]))
    with pytest.raises(QmtlError, match="no bar at 2024-01-03"):
        market_data(preset).fingerprint()


def test_streams_in_folders_are_listed(tmp_path: Path) -> None:
    for name in ("AAPL", "MSFT"):
        (tmp_path / name).mkdir()
        csv(tmp_path / name, GOOD, "bars.csv")
    assert market_data(preset_over(tmp_path / "{stream}" / "bars.csv")).streams() == ("AAPL", "MSFT")


@pytest.mark.parametrize("exchange", ["XNYS", "XKRX", "XHKG"])
@pytest.mark.parametrize(
    "days",
    [
        ["2024-01-06", "2024-01-10"],  # begins on a Saturday
        ["2024-01-03", "2024-01-07"],  # ends on a Sunday
        ["2024-01-06", "2024-01-07", "2024-01-13"],  # weekends alone
        ["2023-12-25", "2024-01-01"],  # holidays
        ["1800-01-04", "1800-01-09"],
        ["1960-01-02", "1960-01-10"],
        ["2099-01-03", "2099-01-11"],
        ["2200-01-04", "2200-01-09"],
    ],
)
def test_a_calendar_says_something_of_any_days(exchange: str, days: list[str]) -> None:
    """The first or last row on a weekend or holiday ended in E_INTERNAL (DateOutOfBounds)."""
    ts = np.array(days, dtype="datetime64[ns]").astype("int64")
    found = missing(Bars(ts, {"close": np.ones(len(ts))}, 86_400), exchange)
    assert not set(found) & set(ts)
    assert (np.diff(found) > 0).all()
    assert all(ts[0] < day < ts[-1] for day in found)
    if days[0] > "2000":  # Korea's exchange was open on Saturdays before
        assert all(pd.DatetimeIndex(found).dayofweek < 5)
    if days[:2] == ["2024-01-06", "2024-01-10"]:
        assert len(found) >= 1
    if exchange == "XNYS" and days == ["2023-12-25", "2024-01-01"]:
        assert pd.DatetimeIndex(found).day.tolist() == [26, 27, 28, 29]
