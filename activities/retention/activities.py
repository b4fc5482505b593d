"""Activities of UpkeepWorkflow for the tables of the database."""

from datetime import datetime

from temporalio import activity

from activities.messages.stubs import RetentionActivityStubs
from activities.messages.upkeep import RowsResult, UpkeepInput, UpkeepRows
from activities.retention.upkeep import RowRetention

# Seconds that one activity archives for, well below its time limit.
_LIMIT_S = 60.0


class RetentionActivities(RetentionActivityStubs):
    """Applies retention to rows."""

    def __init__(self, retention: RowRetention) -> None:
        self._retention = retention

    @activity.defn(no_thread_cancel_exception=True)
    def retained_kinds(self, command: UpkeepInput) -> list[str]:
        """List the kinds of rows that retention applies to."""
        return self._retention.kinds

    @activity.defn(no_thread_cancel_exception=True)
    def archive_rows(self, command: UpkeepRows) -> RowsResult:
        """Archive and remove the rows of a kind that are older than they are kept."""
        rows, more = self._retention.apply(command.kind, datetime.fromisoformat(command.now), _LIMIT_S)
        return RowsResult(kind=command.kind, rows=rows, more=more)
