"""When a target may be traded: a market's sessions, and windows in which nothing is traded."""

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Literal

import numpy as np

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.bars import NS, iso, to_ns
from qmtl_sdk.data.calendars import DAY, is_open, on_session_day, require
from qmtl_sdk.nodes.node import Node, Period
from qmtl_sdk.nodes.view import CacheView
from qmtl_sdk.transforms.columns import (
    TRADABLE,
    WEIGHT,
    TargetNode,
    carried,
    option_error,
    require_nodes,
    weights,
)
from qmtl_sdk.transforms.execution import require_weights

HELD_FOR = 20
"""The default number of bars for which a closed gate holds the last target."""

Moment = datetime | str
"""A time with its zone, or ISO 8601 text of one."""


class TimingGateNode(TargetNode):
    """Lets target weights pass while trading is allowed, which the column `tradable` says (1 or 0).

    An order leaves at the close of its bar: that moment must lie in a session of `calendar` (`24/7`, `24/5`,
    or an exchange's code) and in none of the `blackouts` (pairs of times, the second not included). Bars of a
    day or longer must open on a day with a session. While the gate is closed, `closed="hold"` keeps the
    newest target that passed within the last `period` bars, flat without one, and `closed="flat"` gives 0,
    which is traded.

    Raises QmtlError: E_NODE_OPTION for an unknown calendar, a window without length or zone, or no rule,
    E_NODE_INPUT where the target has an amount that decides instead of its weight (after
    `SizingNode(initial_cash=…)`; at the first bar where a node of another kind gives it), and as `Node`.
    """

    def __init__(
        self,
        target: Node,
        *,
        calendar: str | None = None,
        blackouts: Sequence[tuple[Moment, Moment]] = (),
        closed: Literal["hold", "flat"] = "hold",
        period: Period = HELD_FOR,
        name: str = "timing",
    ) -> None:
        require_nodes([target], name, "target")
        require_weights([target])
        if calendar is None and not blackouts:
            raise option_error(name, "it has no rule", "pass calendar= or blackouts=")
        if calendar is not None:
            require(calendar, "E_NODE_OPTION")
        if closed not in ("hold", "flat"):
            raise option_error(name, f"closed is {closed!r}", "use 'hold' or 'flat'")
        windows = sorted(_window(start, end, name) for start, end in _pairs(blackouts, name))
        super().__init__(
            target,
            name=name,
            interval=target.interval,
            period=period if closed == "hold" else 1,
            params={
                "calendar": calendar or "",
                "blackouts": [[iso(start), iso(end)] for start, end in windows],
                "closed": closed,
            },
        )
        self.compute_fn = partial(
            _gated, calendar=calendar, blackouts=windows, hold=closed == "hold", period=self.period
        )
        self.target = target


def _pairs(blackouts: Sequence[tuple[Moment, Moment]], label: str) -> Sequence[tuple[Moment, Moment]]:
    """Return the blackouts. Raises QmtlError: E_NODE_OPTION where they are not pairs."""
    found = blackouts or ()
    for pair in found if isinstance(found, list | tuple) else [found]:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise option_error(
                label, f"the blackout {pair!r} is not a pair of times", "pass blackouts=[(start, end), …]"
            )
    return found


def _window(start: Moment, end: Moment, label: str) -> tuple[int, int]:
    """Return a window in ns, UTC."""
    found = (_ns(start, label), _ns(end, label))
    if found[0] >= found[1]:
        raise option_error(label, f"the blackout {start} … {end} has no length", "let it end after it begins")
    return found


def _ns(moment: Moment, label: str) -> int:
    try:
        time = datetime.fromisoformat(moment) if isinstance(moment, str) else moment
        if time.tzinfo is not None:
            return to_ns(time)
    except (AttributeError, TypeError, ValueError) as error:
        raise _no_time(moment, label) from error
    raise _no_time(moment, label)


def _no_time(moment: object, label: str) -> QmtlError:
    return option_error(
        label,
        f"{moment!r} is not a time with a zone",
        "write it as 2024-03-20T18:00Z, or pass an aware datetime",
    )


def _gated(
    view: CacheView, calendar: str | None, blackouts: list[tuple[int, int]], hold: bool, period: int
) -> dict[str, np.ndarray]:
    window = view[next(iter(view))]
    leaves = window.ts + window.interval * NS
    passes = np.ones(len(window), dtype=bool)
    if calendar is not None and window.interval >= DAY:
        passes &= on_session_day(calendar, window.ts)
    elif calendar is not None:
        passes &= is_open(calendar, leaves)
    for start, end in blackouts:
        passes &= (leaves < start) | (leaves >= end)
    columns = carried(window)
    tradable = columns.get(TRADABLE, np.ones(len(window)))
    if not hold:
        return {**columns, WEIGHT: np.where(passes, weights(window), 0.0), TRADABLE: tradable}
    rows = np.arange(len(window))
    newest = np.maximum.accumulate(np.where(passes, rows, -1))
    known = (newest > rows - period) & (newest >= 0)
    weight = np.where(known, weights(window)[np.maximum(newest, 0)], 0.0)
    return {**columns, WEIGHT: weight, TRADABLE: np.where(passes, tradable, 0.0)}
