"""Inputs and results of UpkeepWorkflow and its activities."""

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.model import Model


class UpkeepInput(StoreMessage):
    """The store whose queues are maintained. `now` (ISO 8601, UTC) replaces the start time of the run."""

    now: str = ""


class UpkeepTopic(StoreMessage):
    """Apply retention to one queue as of `now` (ISO 8601, UTC)."""

    topic: str
    now: str


class UpkeepDone(Model):
    """Totals of one upkeep run. The queues and tables in `failed` were left unchanged.

    `archived`: messages of queues; `rows`: rows of tables.
    """

    due: int
    archived: int
    dropped: int
    rows: int = 0
    failed: tuple[str, ...] = ()


class UpkeepRows(StoreMessage):
    """Apply retention to the rows of one kind (`RowRetention.kinds`) as of `now` (ISO 8601, UTC)."""

    kind: str
    now: str


class RowsResult(Model):
    """How many rows of a kind were archived and removed, and whether there was no time for all."""

    kind: str
    rows: int
    more: bool


class RetentionResult(Model):
    """What retention did to one queue: messages archived, the archive's content hash, if it was dropped."""

    topic: str
    archived: int = 0
    archive: str = ""
    dropped: bool = False
