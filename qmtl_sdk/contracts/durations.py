"""Intervals and periods as people write them: `60`, `"60s"`, `"1m"`, `"1h"`, `"1d"`."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

from qmtl_sdk.contracts.errors import QmtlError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
"""Seconds per unit."""

_MAX_TEXT = 40
"""Characters of a duration as text."""

MAX_DURATION_S = 36_525 * 86_400
"""Seconds of the longest duration: a century."""

_FORM = re.compile(r"\s*(\d+)\s*([smhdw])\s*", re.IGNORECASE | re.ASCII)


def seconds(value: "int | float | str | timedelta", code: str = "E_INTERVAL") -> int:
    """Return a positive duration in whole seconds. Raises QmtlError: `code` for anything else."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str) and len(value) <= _MAX_TEXT:
        match = _FORM.fullmatch(value)
        if match:
            value = int(match[1]) * _UNITS[match[2].lower()]
        elif value.isascii() and value.strip().isdigit():
            value = int(value)
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 < value <= MAX_DURATION_S
        or value != int(value)
    ):
        raise QmtlError(
            code,
            f"{str(value)[:_MAX_TEXT]!r} is not a duration of at most a century",
            "write whole seconds (60) or a number with s, m, h, d or w (“1m”)",
            value=str(value)[:_MAX_TEXT],
        )
    return int(value)


def bars(value: "int | str | timedelta", interval_s: int) -> int:
    """Return a period as a number of bars.

    A duration must be a multiple of the interval: `"30m"` at 60 s is 30.

    Raises QmtlError: E_PERIOD.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str | timedelta):
        length = seconds(value, "E_PERIOD")
        if isinstance(value, str) and value.strip().isdigit():
            return length
        if length % interval_s == 0:
            return length // interval_s
    raise QmtlError(
        "E_PERIOD",
        f"{value!r} is not a period at an interval of {interval_s} s",
        "write a number of bars (30) or a multiple of the interval",
    )


def format_duration(length_s: float) -> str:
    """Return a duration as a person writes it, in at most two units: `90000` → `1d 1h`."""
    if length_s < 1:
        return f"{length_s:g}s"
    rest = int(length_s)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def retry_pause_s(failures: int, first_s: float, limit_s: float) -> float:
    """Return the seconds until the next try after 1, 2, … failures: `first_s`, doubled each time.

    At most `limit_s`.
    """
    doublings = min(failures - 1, 64)  # so that no number of failures is too large for a float
    return min(first_s * 2.0**doublings, limit_s)


def _validated(value: "int | str | timedelta") -> int:
    try:
        return seconds(value)
    except QmtlError as error:
        raise ValueError(f"{error.message}: {error.remedy}") from error


Seconds = Annotated[
    int,
    Field(gt=0, le=MAX_DURATION_S),
    BeforeValidator(_validated),
    PlainSerializer(lambda value: value, return_type=int),
]
"""A Pydantic field that accepts every form above and holds whole seconds."""
