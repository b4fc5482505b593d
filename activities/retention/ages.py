"""When rows are old enough to be archived, and which times no age can be taken from."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property

from activities.storage.transactions import utc_text

CLOCK_ERROR = timedelta(days=1)
"""How far the clocks of hosts may differ. A row that is dated later than this from now has a wrong time."""


@dataclass(frozen=True)
class Ages:
    """The ages of rows that are kept for some days, at one moment. Rows hold their times as text (UTC)."""

    now: datetime
    days: int

    @property
    def limit(self) -> datetime:
        """The moment before which rows are old."""
        return self.now - timedelta(days=self.days)

    @cached_property
    def cutoff(self) -> str:
        """The same, as rows hold it."""
        return utc_text(self.limit)

    @cached_property
    def latest(self) -> str:
        """The time after which a row's time is wrong, and says nothing about its age."""
        return utc_text(self.now + CLOCK_ERROR)

    def is_young(self, at: str) -> bool:
        """Return whether a row of this time must stay, and so do the rows after it."""
        return self.cutoff <= at <= self.latest
