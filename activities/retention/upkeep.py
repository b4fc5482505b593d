"""Retention of the rows of the database: each kind of rows with its time, as the configuration has it."""

from collections.abc import Callable
from datetime import UTC, datetime

from activities.retention.ages import Ages
from activities.retention.archives import Archives
from activities.retention.audit_trail import AuditRetention
from activities.retention.failures import FailedKinds
from activities.retention.order_log import OrderLogRetention
from activities.retention.records import RecordRetention
from activities.retention.rules import RULES
from activities.settings import RetentionSettings
from activities.storage.database import Database

ORDERS = "orders"
AUDIT = "audit"


def _utc_clock() -> datetime:
    return datetime.now(UTC)


class RowRetention:
    """Archives rows that are older than they are kept, and removes them.

    `clock`: no row is older than it says, whatever moment a command names.
    """

    def __init__(
        self,
        database: Database,
        archives: Archives,
        settings: RetentionSettings,
        clock: Callable[[], datetime] = _utc_clock,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._failed = FailedKinds()
        self._orders = OrderLogRetention(database, archives)
        self._audit = AuditRetention(database, archives)
        self._records = RecordRetention(database, archives)

    @property
    def kinds(self) -> list[str]:
        """The kinds of rows, in the order in which they are archived: each removal is audited."""
        return [ORDERS, *RULES, AUDIT]

    @property
    def fault(self) -> str:
        """What this process could not archive when it last tried; empty for nothing."""
        return self._failed.text()

    def apply(self, kind: str, now: datetime, limit_s: float) -> tuple[int, bool]:
        """Archive and remove the rows of a kind that are too old at `now`, for about `limit_s` seconds.

        Returns how many there were, and whether some are left. Raises QmtlError: E_ARCHIVE where rows are
        kept because their archive differs from the table; E_AUDIT_BROKEN where the table was changed.
        """
        with self._failed.noting(kind):
            ages = Ages(min(now, self._clock()), self._days(kind))
            if kind == ORDERS:
                return self._orders.apply(ages, limit_s)
            if kind == AUDIT:
                return self._audit.apply(ages, limit_s)
            return self._records.apply(RULES[kind], ages, limit_s)

    def _days(self, kind: str) -> int:
        if kind == ORDERS:
            return self._settings.orders_days
        return self._settings.audit_days if kind == AUDIT else RULES[kind].days(self._settings)
