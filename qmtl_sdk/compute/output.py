"""What a compute function may give back, brought to one form: named columns of numbers, a value a bar.

A DataFrame, a Series, a one-dimensional array, a mapping of columns, or a number. Nothing (None, an empty frame) is a missing value.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.errors import QmtlError

VALUE = "value"
Columns = dict[str, np.ndarray]


def columns_of(result: Any, ts: np.ndarray, label: str) -> Columns | None:
    """Columns as long as `ts`, or None where the result has another length. A result with a time index is placed by its times. Raises QmtlError (E_COMPUTE_OUTPUT)."""
    if result is None:
        return {}
    if isinstance(result, pd.Series):
        result = result.to_frame(result.name if isinstance(result.name, str) else VALUE)
    if isinstance(result, pd.DataFrame):
        if isinstance(result.index, pd.DatetimeIndex):
            return _placed(result, ts, label)
        result = {str(name): result.iloc[:, i].to_numpy() for i, name in enumerate(result.columns)}
    if not isinstance(result, Mapping):
        result = {VALUE: result}
    columns = {str(name): _numbers(values, label, str(name)) for name, values in result.items()}
    return columns if all(len(values) == len(ts) for values in columns.values()) else None


def last_row(result: Any, ts: int, label: str) -> dict[str, float]:
    """The values of the bar that opens at `ts` (ns): the last row, unless a time index says that this row is another bar's."""
    if isinstance(result, pd.Series):
        result = result.to_frame(result.name if isinstance(result.name, str) else VALUE)
    if isinstance(result, pd.DataFrame):
        if not len(result):
            return {}
        if isinstance(result.index, pd.DatetimeIndex) and result.index[-1].value != ts:
            return {}
        result = {str(name): result.iloc[-1:, i].to_numpy() for i, name in enumerate(result.columns)}
    if result is None:
        return {}
    if not isinstance(result, Mapping):
        result = {VALUE: result}
    row = {}
    for name, values in result.items():
        numbers = _numbers(values, label, str(name))
        row[str(name)] = float(numbers[-1]) if len(numbers) else float("nan")
    return row


def _placed(frame: pd.DataFrame, ts: np.ndarray, label: str) -> Columns | None:
    index = frame.index if frame.index.tz is not None else frame.index.tz_localize("UTC")
    at = index.as_unit("ns").asi8
    rows = np.searchsorted(ts, at)
    if len(at) and (rows.max() >= len(ts) or (ts[rows] != at).any()):
        return None
    columns = {}
    for i, name in enumerate(frame.columns):
        values = np.full(len(ts), np.nan)
        values[rows] = _numbers(frame.iloc[:, i].to_numpy(), label, str(name))
        columns[str(name)] = values
    return columns


def _numbers(values: Any, label: str, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype="float64")
    except (TypeError, ValueError) as error:
        raise QmtlError(
            "E_COMPUTE_OUTPUT",
            f"{label} gave {name} as {type(values).__name__}, which is not numbers",
            "return a DataFrame, Series, array or number",
        ) from error
    if array.ndim == 0:
        array = array.reshape(1)
    if array.ndim != 1:
        raise QmtlError(
            "E_COMPUTE_OUTPUT",
            f"{label} gave an array of shape {array.shape}",
            "return a DataFrame, so that its columns have names",
        )
    if np.isinf(array).any():
        array = np.where(np.isinf(array), np.nan, array)
    return array
