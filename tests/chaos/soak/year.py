"""The simulated year: the wall time that it takes, what is due at which time, and what went wrong."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from qmtl_sdk import QmtlError

DAYS = 365
DAY_S = 86_400

# Errors of one run after which it is no use to go on.
_MOST_ERRORS = 50


class Year:
    """365 days in `seconds` of wall time.

    `errors` says what was answered with an error, which is a violation: nothing is killed in this suite.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.errors: list[str] = []
        self.ended = threading.Event()
        self.begin()

    def begin(self) -> None:
        """Let the first day begin now."""
        self.began_at = datetime.now(UTC)
        self._began = time.monotonic()

    @property
    def speed(self) -> float:
        """Simulated seconds in a second."""
        return DAYS * DAY_S / self.seconds

    @property
    def day(self) -> float:
        """The days that have passed."""
        return DAYS * (time.monotonic() - self._began) / self.seconds

    def wait(self, day: float) -> bool:
        """Wait until a day; return whether the year has ended before."""
        return self.ended.wait(max(0.0, (day - self.day) * self.seconds / DAYS))

    def spread(self, count: int, act: Callable[[int], int]) -> None:
        """Call `act` with how much is done until that is `count`, evenly over the year.

        `act` returns how much it has done. What is late is made up for without a pause.
        """
        done = 0
        while done < count and not self.wait(DAYS * done / count):
            try:
                done += act(done)
            except QmtlError as error:
                self.errors.append(f"day {self.day:.0f}: {error}")
                if len(self.errors) > _MOST_ERRORS:
                    self.ended.set()
