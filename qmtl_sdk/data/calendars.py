"""Markets' calendars: how many bars a year has, and which bars are missing.

`24/7` trades always; `24/5` from Sunday 22:00 to Friday 22:00 UTC, an hour less or more around changes of the
clocks; every other name is an exchange's code (XNYS, XLON …) as the package exchange_calendars knows it.
"""

import functools
from collections.abc import Container, Iterable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.submission import StreamBinding
from qmtl_sdk.data.bars import NS, Bars

# Seconds.
DAY = 86_400

# Calendars of markets that never close, and of those that close on weekends.
ALWAYS = "24/7"
WEEKDAYS = "24/5"

# The days between which an exchange has sessions where its calendar names no bounds of its own.
_FIRST_DAY = pd.Timestamp("1900-01-01")
_LAST_DAY = pd.Timestamp("2100-01-01")

# Sessions a year and hours a session by convention, where there is one.
_CONVENTION = {ALWAYS: (365.0, 24.0), WEEKDAYS: (260.0, 24.0), "XNYS": (252.0, 6.5), "XNAS": (252.0, 6.5)}


def _exchanges() -> Any:
    """Load the package of exchange calendars when it is needed: that takes 0.25 s. (Any: it has no types.)"""
    import exchange_calendars

    return exchange_calendars


def known(name: str) -> bool:
    return name in _CONVENTION or name in _exchanges().get_calendar_names(include_aliases=True)


def require(name: str, code: str = "E_WORLD_INVALID") -> None:
    """Raises QmtlError (`code`) where there is no such calendar."""
    if not known(name):
        names = [*_CONVENTION, *_exchanges().get_calendar_names(include_aliases=True)]
        raise QmtlError(
            code,
            f"{name!r} is not a calendar{nearest(name, names)}",
            "use 24/7, 24/5 or an exchange's code such as XNYS",
        )


def periods_per_year(calendar: str, interval_s: int) -> float:
    """Return the bars a year of an interval.

    XNYS has 252 days, or 252 · 6.5 hours; a market that never closes has 365 · 24 hours.
    """
    days, hours = _CONVENTION[calendar] if calendar in _CONVENTION else _observed(calendar)
    if interval_s >= DAY:
        return (
            days / (interval_s / DAY)
            if calendar == ALWAYS or interval_s == DAY
            else days * DAY / interval_s * (7 / 5 if interval_s % (7 * DAY) == 0 else 1)
        )
    return days * hours * 3600 / interval_s


def most_periods_per_year(
    bindings: Iterable[StreamBinding], streams: Container[str], interval_s: int
) -> float:
    """Return the bars per year of the calendars of the bound `streams`.

    Of several, that which is open most.
    """
    calendars = {binding.preset.calendar for binding in bindings if binding.node_id in streams} or {ALWAYS}
    return max(periods_per_year(calendar, interval_s) for calendar in calendars)


def _observed(calendar: str) -> tuple[float, float]:
    exchange = _exchanges().get_calendar(calendar)
    opened = exchange.closes - exchange.opens
    years = (exchange.sessions[-1] - exchange.sessions[0]) / timedelta(days=365.25)
    return len(exchange.sessions) / years, float(opened.median() / pd.Timedelta(hours=1))


def missing(bars: Bars, calendar: str, at_most: int = 1000) -> np.ndarray:
    """Return opening times (int64, ns) of bars that the calendar expects and the data lacks, oldest first."""
    step = bars.interval * NS
    wide = np.flatnonzero(np.diff(bars.ts) > step)
    if not len(wide):
        return np.array([], dtype="int64")
    if calendar in (ALWAYS, WEEKDAYS):
        gaps = [np.arange(bars.ts[i] + step, bars.ts[i + 1], step)[:at_most] for i in wide]
        times = np.concatenate(gaps)
        return times[:at_most] if calendar == ALWAYS else times[_weekday(times)][:at_most]
    expected = _sessions(calendar, int(bars.ts[0]), int(bars.ts[-1]))
    return np.setdiff1d(expected, bars.ts // (DAY * NS) * (DAY * NS))[:at_most]


def off_session(bars: Bars, calendar: str) -> np.ndarray:
    """Return which bars open while the market is closed (bool, by row).

    A market that never closes has none. For an exchange only days count, as far as its calendar reaches.
    """
    if calendar == ALWAYS:
        return np.zeros(len(bars), dtype=bool)
    if calendar == WEEKDAYS:
        return ~_weekday(bars.ts)
    days = bars.ts // (DAY * NS) * (DAY * NS)
    earliest, latest = _bounds(calendar)
    reached = (days >= earliest.value) & (days <= latest.value)
    return reached & ~np.isin(days, _sessions(calendar, int(bars.ts[0]), int(bars.ts[-1])))


def is_open(calendar: str, times: np.ndarray) -> np.ndarray:
    """Return at which times (int64, ns UTC) the market is open (bool, by time).

    A session is open from its opening until before its close, except in its break. An exchange is closed
    where its calendar does not reach.
    """
    if calendar == ALWAYS or not len(times):
        return np.ones(len(times), dtype=bool)
    if calendar == WEEKDAYS:
        return _weekday(times)
    first, last = pd.Timestamp(int(times.min())), pd.Timestamp(int(times.max()))
    earliest, latest = _bounds(calendar)
    if last < earliest or first > latest:
        return np.zeros(len(times), dtype=bool)
    opens, closes = _trading_hours(calendar, *_decades(max(first, earliest), min(last, latest)))
    at = np.searchsorted(opens, times, side="right") - 1
    found: np.ndarray = (at >= 0) & (times < closes[np.maximum(at, 0)])
    return found


@functools.lru_cache(maxsize=32)
def _trading_hours(calendar: str, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """Return when trading begins and ends (int64, ns), twice for a session with a break."""
    hours = _exchange_of_years(calendar, first, last).schedule
    opens, ends, starts, closes = (
        pd.DatetimeIndex(hours[name]).tz_convert("UTC").as_unit("ns")
        for name in ("open", "break_start", "break_end", "close")
    )
    has_break = np.asarray(ends.notna())
    begin = np.concatenate([opens.asi8, starts.asi8[has_break]])
    end = np.concatenate([np.where(has_break, ends.asi8, closes.asi8), closes.asi8[has_break]])
    order = np.argsort(begin)
    return begin[order], end[order]


def on_session_day(calendar: str, times: np.ndarray) -> np.ndarray:
    """Return which times (int64, ns UTC) lie on a day with a session of the market (bool, by time)."""
    if calendar in (ALWAYS, WEEKDAYS) or not len(times):
        return is_open(calendar, times)
    return np.isin(times // (DAY * NS) * (DAY * NS), _sessions(calendar, int(times.min()), int(times.max())))


def _sessions(calendar: str, first: int, last: int) -> np.ndarray:
    """Return the exchange's sessions between two times (int64, ns), as far as its calendar reaches."""
    earliest, latest = _bounds(calendar)
    start, end = pd.Timestamp(first).normalize(), pd.Timestamp(last).normalize()
    if end < earliest or start > latest:
        return np.array([], dtype="int64")
    # A calendar of a range without a session raises an error; one of whole years has sessions.
    sessions = _sessions_of_years(calendar, *_decades(max(start, earliest), min(end, latest)))
    return sessions[(sessions >= start.value) & (sessions <= end.value)]


def _decades(first: pd.Timestamp, last: pd.Timestamp) -> tuple[int, int]:
    """Return the first and the last year of the decades of two times: windows of one history share them."""
    return first.year // 10 * 10, last.year // 10 * 10 + 9


@functools.lru_cache(maxsize=32)  # an exchange's calendar takes 0.4 s to make
def _bounds(calendar: str) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Return the first and the last day that the exchange's calendar knows."""
    exchange = _exchanges().get_calendar(calendar)
    return exchange.bound_min() or _FIRST_DAY, exchange.bound_max() or _LAST_DAY


@functools.lru_cache(maxsize=32)
def _sessions_of_years(calendar: str, first: int, last: int) -> np.ndarray:
    """Return the exchange's sessions (int64, ns) of these years and some before and after."""
    exchange = _exchange_of_years(calendar, first, last)
    return np.asarray(exchange.sessions.to_numpy().astype("datetime64[ns]").astype("int64"))


def _exchange_of_years(calendar: str, first: int, last: int) -> Any:
    """Load an exchange's calendar of these years and some before and after. (Any: it has no types.)"""
    earliest, latest = _bounds(calendar)
    return _exchanges().get_calendar(
        calendar,
        start=max(pd.Timestamp(first - 1, 1, 1), earliest),
        end=min(pd.Timestamp(last + 1, 12, 31), latest),
    )


def _weekday(times: np.ndarray) -> np.ndarray:
    """Return which times lie outside weekends, with an hour of tolerance on both sides."""
    hour_of_week = (times // NS // 3600 + 3 * 24) % (
        7 * 24
    )  # 1970-01-01 was a Thursday; the week starts on Monday
    return (hour_of_week < 4 * 24 + 21) | (hour_of_week >= 6 * 24 + 22)
