"""The output of a compute function, converted to named columns of numbers with one value a bar.

A function may return a DataFrame, a Series, a one-dimensional array, a mapping of columns, or a number. None
and an empty frame are a missing value. Rows of a result with a time index belong to the bars of their times;
rows of any other result belong to the last bars of the window, in order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import Bars

VALUE = "value"
"""The name of the column of a result without names, such as an array or a number."""

Columns = dict[str, np.ndarray]
"""float64 arrays of equal length, by column name."""


@dataclass(frozen=True)
class NodeOutput:
    """A node's output over history. Rows before `first` are warm-up and missing."""

    bars: Bars
    first: int = 0


def columns_of(result: Any, ts: np.ndarray, label: str) -> Columns | None:
    """Return columns as long as `ts` (opening times, int64 ns), or None if `result` is not one value a bar.

    Bars without a row are missing. Raises QmtlError: E_COMPUTE_OUTPUT where a value is not a number,
    E_OUTPUT_TIME where a row's time is not the time of a bar.
    """
    if result is None:
        return {}
    if isinstance(result, pd.Series):
        result = _frame_of(result)
    if isinstance(result, pd.DataFrame):
        if isinstance(result.index, pd.DatetimeIndex):
            return _placed(result, ts, label)
        result = {str(name): result.iloc[:, i].to_numpy() for i, name in enumerate(result.columns)}
    if not isinstance(result, Mapping):
        result = {VALUE: result}
    columns = {str(name): _numbers(values, label, str(name)) for name, values in result.items()}
    return columns if all(len(values) == len(ts) for values in columns.values()) else None


def last_row(result: Any, ts: int, label: str) -> dict[str, float]:
    """Return the values of the bar that opens at `ts` (ns): the last row of `result`.

    Raises QmtlError: E_COMPUTE_OUTPUT where a value is not a number, E_OUTPUT_TIME where the last row has
    another time than the bar.
    """
    if result is None:
        return {}
    if isinstance(result, pd.Series):
        result = _frame_of(result)
    if isinstance(result, pd.DataFrame):
        if not len(result):
            return {}
        if isinstance(result.index, pd.DatetimeIndex):
            last = _times(result.index[-1:])[0]
            if last != ts:
                raise _wrong_time(
                    f"{label} returned a frame whose last row has the time", last, "the bar opens at", ts
                )
        result = {str(name): result.iloc[-1:, i].to_numpy() for i, name in enumerate(result.columns)}
    if not isinstance(result, Mapping):
        result = {VALUE: result}
    row = {}
    for name, values in result.items():
        numbers = _numbers(values, label, str(name))
        row[str(name)] = float(numbers[-1]) if len(numbers) else float("nan")
    return row


def _frame_of(series: "pd.Series[Any]") -> pd.DataFrame:
    return series.to_frame(series.name if isinstance(series.name, str) else VALUE)


def _times(index: pd.DatetimeIndex) -> np.ndarray:
    """Return times as int64 ns; times without a zone are UTC."""
    return (index if index.tz is not None else index.tz_localize("UTC")).as_unit("ns").asi8


def _placed(frame: pd.DataFrame, ts: np.ndarray, label: str) -> Columns | None:
    """Place each row at the bar of its time. A single row of many bars is the value of a window: None."""
    assert isinstance(frame.index, pd.DatetimeIndex)  # the caller checked it
    times = _times(frame.index)
    rows = np.minimum(np.searchsorted(ts, times), len(ts) - 1)
    wrong = np.flatnonzero(ts[rows] != times)
    if len(wrong):
        time = times[wrong[0]]
        bar = ts[max(0, int(np.searchsorted(ts, time)) - 1)]
        raise _wrong_time(
            f"{label} returned a row that is not at a bar of the node: it has the time",
            time,
            "the bar before it opens at",
            bar,
        )
    if len(times) == 1 < len(ts):
        return None
    columns = {}
    for i, name in enumerate(frame.columns):
        values = np.full(len(ts), np.nan)
        values[rows] = _numbers(frame.iloc[:, i].to_numpy(), label, str(name))
        columns[str(name)] = values
    return columns


def _wrong_time(found: str, row: int, wanted: str, bar: int) -> QmtlError:
    times = [pd.Timestamp(ns, tz="UTC").isoformat().replace("+00:00", "Z") for ns in (row, bar)]
    return QmtlError(
        "E_OUTPUT_TIME",
        f"{found} {times[0]}, {wanted} {times[1]}",
        "return rows at the opening times of the node's own bars, up to the last one (NaN where there is no "
        "value; view.align_frames joins inputs of other intervals), or a number",
        row=times[0],
        bar=times[1],
    )


def _numbers(values: Any, label: str, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise QmtlError(
            "E_COMPUTE_OUTPUT",
            f"{label} returned {name} as {type(values).__name__}, which is not numbers",
            "return a DataFrame, Series, array or number",
        ) from error
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise QmtlError(
            "E_COMPUTE_OUTPUT",
            f"{label} returned an array of shape {array.shape}",
            "return a DataFrame, so that its columns have names",
        )
    if np.isinf(array).any():
        array = np.where(np.isinf(array), np.nan, array)
    return array
