"""The sums of days that the order log makes, beside the stored ones: compared some at a time."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from activities.ledger.exposures import (
    AccountTotals,
    DayKey,
    ExposureKey,
    Exposures,
    number_of_days,
    totals_of_days,
)
from qmtl_sdk.contracts.amounts import ZERO

CHUNK = 2000
"""Rows of the ledger that are read, and days that are compared, at a time."""

MOST_DIFFERENCES = 20
"""Differences that a check names."""


class DaySums:
    """Compares the days of a world. In memory are one day of each owner, and as many again with a chunk."""

    def __init__(self, connection: Connection, world_id: str) -> None:
        self._connection = connection
        self._world_id = world_id
        self._made = dict[ExposureKey, int]()
        self._differences = list[str]()

    def compare_ended(self, exposures: Exposures) -> None:
        """Compare days that have ended and let go of them, once there are many."""
        if len(exposures.days) >= 2 * len(exposures.found) + CHUNK:
            self._compare(exposures.take_ended_days())

    def differences_of(self, exposures: Exposures) -> list[str]:
        """Compare the days that are left, and whether the ledger has others; name what differs in all."""
        left = sorted(exposures.days.items())
        for first in range(0, len(left), CHUNK):
            self._compare(dict(left[first : first + CHUNK]))
        stored = number_of_days(self._connection, self._world_id)
        # A day that is missing was named with its sums.
        more = {owner: number for owner, number in stored.items() if number > self._made.get(owner, 0)}
        made = {owner: self._made.get(owner, 0) for owner in more}
        return self._differences + named_differences("number of days of", made, more)

    def _compare(self, made: Mapping[DayKey, AccountTotals]) -> None:
        stored = totals_of_days(self._connection, self._world_id, made)
        for owner, _ in made:
            self._made[owner] = self._made.get(owner, 0) + 1
        found = named_differences(
            "day", {key: each._replace(peak=ZERO) for key, each in made.items()}, stored
        )
        self._differences += found[: MOST_DIFFERENCES - len(self._differences)]


def named_differences(what: str, made: Mapping[Any, object], stored: Mapping[Any, object]) -> list[str]:
    """Name what differs. (Any: keys of one kind, which can be sorted.)"""
    return [
        f"{what} {key}: the log makes {made.get(key)}, the ledger has {stored.get(key)}"
        for key in sorted(made.keys() | stored.keys())
        if made.get(key) != stored.get(key)
    ]
