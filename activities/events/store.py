"""What the Gateway and the workflows need of the commit log."""

from typing import Protocol

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck


class LogEntry(Model):
    """A submission in the log: the run that admitted it and what was answered, once that happened."""

    idempotency_key: str
    world_id: str
    strategy_id: str
    run_id: str | None = None
    ack: SubmissionAck | None = None
    refused: str | None = None


class CommitLogStore(Protocol):
    def append(self, submit: StrategySubmit, actor: str) -> LogEntry:
        """Append, or find what an earlier request with this key left. Raises QmtlError (E_IDEMPOTENCY_KEY_REUSED) for another body."""

    def entry(self, idempotency_key: str) -> LogEntry | None: ...

    def body(self, idempotency_key: str) -> StrategySubmit: ...

    def admitted(self, idempotency_key: str, run_id: str, ack: SubmissionAck) -> None:
        """Remember which run admitted it and what was answered. Done once: a later answer does not replace it."""

    def refuse(self, idempotency_key: str, code: str) -> None:
        """Note that no run will ever admit it."""

    def waiting(self) -> list[LogEntry]:
        """What was logged and neither admitted nor refused, oldest first."""
