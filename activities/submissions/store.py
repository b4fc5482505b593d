"""The interfaces of the commit log and of the store of runs."""

from collections.abc import Sequence
from typing import Protocol

from activities.messages.submission import EvidenceBody, NodeValidation, RunContextBody
from activities.storage.transactions import Transaction
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck, SubmissionOutcome


class LogEntry(Model):
    """A submission in the commit log; once it was admitted also its run and the answer."""

    idempotency_key: str
    world_id: str
    strategy_id: str
    run_id: str | None = None
    ack: SubmissionAck | None = None
    refused: str | None = None


class CommitLogStore(Protocol):
    """Every submission that was acknowledged, written before anything else happens to it."""

    def append(self, submit: StrategySubmit, actor: str) -> LogEntry:
        """Append a submission, or find the entry of an earlier request with its key.

        Raises QmtlError: E_IDEMPOTENCY_KEY_REUSED where the key came with another body, or from someone else.
        """

    def body(self, idempotency_key: str) -> StrategySubmit:
        """Read a submission. Raises QmtlError (E_FOREIGN_STORE) where this store has none under the key."""

    def record_admission(
        self, tx: Transaction, idempotency_key: str, run_id: str, ack: SubmissionAck
    ) -> None:
        """Record which run admitted a submission, and the answer. The first record stands.

        A lease that a later answer grants is recorded as well.
        """

    def require_lease_holder(self, run_id: str, lease_id: str, actor: str) -> None:
        """Require the actor to whom a lease of the run was granted.

        Raises QmtlError: E_LEASE_UNKNOWN, E_LEASE_HOLDER.
        """

    def refuse(self, idempotency_key: str, code: str) -> None:
        """Record that no run will ever admit a submission."""

    def waiting(self, most: int) -> list[str]:
        """List the keys of submissions that are neither admitted nor refused, oldest first, up to `most`."""

    def count_waiting(self, most: int) -> int:
        """Count them, up to `most`."""


class RunStore(Protocol):
    """Runs of submissions. Everything about a run is stored once; a repetition returns what is stored."""

    def begin_run(self, tx: Transaction, run: RunContextBody) -> RunContextBody:
        """Bind the strategy to the world and store the run's context."""

    def run(self, run_id: str) -> RunContextBody | None:
        """Read the context of a run."""

    def newest_run(self, strategy_id: str, world_id: str | None) -> RunContextBody | None:
        """Read the newest run of a strategy, in any world unless one is given."""

    def save_evidence(
        self, evidence: EvidenceBody, validations: Sequence[NodeValidation] = ()
    ) -> EvidenceBody:
        """Store the evidence of a run, and the validations of the strategy's nodes that follow from it."""

    def validated(self, checked: Sequence[NodeValidation], validation_id: str) -> EvidenceBody | None:
        """Find evidence of the same returns under the same EvalKeys; None where there is none."""

    def evidence(self, run_id: str) -> EvidenceBody | None:
        """Read the evidence of a run."""

    def save_outcome(self, outcome: SubmissionOutcome) -> SubmissionOutcome:
        """Store how a run ended."""

    def outcome(self, run_id: str) -> SubmissionOutcome | None:
        """Read how a run ended; None while it runs."""
