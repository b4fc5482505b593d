"""Retention of the rows of the database: each kind of rows with its time, as the configuration has it."""

from datetime import datetime, timedelta

from activities.retention.archives import Archives
from activities.retention.audit_trail import AuditRetention
from activities.retention.order_log import OrderLogRetention
from activities.retention.records import RecordRetention
from activities.retention.rules import RULES
from activities.settings import RetentionSettings
from activities.storage.database import Database

ORDERS = "orders"
AUDIT = "audit"


class RowRetention:
    """Archives rows that are older than they are kept, and removes them."""

    def __init__(self, database: Database, archives: Archives, settings: RetentionSettings) -> None:
        self._settings = settings
        self._orders = OrderLogRetention(database, archives)
        self._audit = AuditRetention(database, archives)
        self._records = RecordRetention(database, archives)

    @property
    def kinds(self) -> list[str]:
        """The kinds of rows, in the order in which they are archived: each removal is audited."""
        return [ORDERS, *RULES, AUDIT]

    def apply(self, kind: str, now: datetime, limit_s: float) -> tuple[int, bool]:
        """Archive and remove the rows of a kind that are too old at `now`, for about `limit_s` seconds.

        Returns how many there were, and whether some are left. Raises QmtlError: E_ARCHIVE where nothing more
        is removed, because an archive differs from the table; E_AUDIT_BROKEN where the table was changed.
        """
        if kind == ORDERS:
            return self._orders.apply(now, now - timedelta(days=self._settings.orders_days), limit_s)
        if kind == AUDIT:
            return self._audit.apply(now - timedelta(days=self._settings.audit_days), limit_s)
        rule = RULES[kind]
        return self._records.apply(rule, now - timedelta(days=rule.days(self._settings)), limit_s)
