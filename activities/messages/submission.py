"""Inputs and results of SubmissionWorkflow and its activities."""

from typing import Literal
from urllib.parse import quote

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.submission import (
    EvidenceRef,
    Heartbeat,
    Lease,
    StrategySubmit,
    StreamBindings,
    SubmissionAck,
)
from qmtl_sdk.contracts.worlds import Execution, UtcTime


class SubmissionProgressSoFar(Model):
    """What a submission's workflow hands over when it continues as new.

    `run_id` is the first execution's, which stays the id of the run. `judging`: its returns are measured, or
    rejected with this error.
    """

    run_id: str
    ack: SubmissionAck
    leases: int = 0
    reached: Heartbeat = Heartbeat()
    judging: bool = False
    metrics: dict[str, float | None] = {}
    error_code: str = ""
    error: str = ""


class SubmissionInput(StoreMessage, OfStrategy):
    """One run of a submission. Its DAG is in the commit log under `log_key`, not in the history."""

    log_key: str
    world_id: str
    nodes: int
    heartbeat_timeout_s: float = 10.0
    abandon_after_s: float = 7 * 86_400.0
    so_far: SubmissionProgressSoFar | None = None


class Admit(Model):
    """Update: admit a submission and lease its computation to `runner`.

    Idempotent for the same runner. An empty name requests no lease. With a `run_id`, only that run answers.
    """

    idempotency_key: str
    runner: str
    run_id: str = ""

    @classmethod
    def of(cls, submit: StrategySubmit, actor: str, run_id: str = "") -> "Admit":
        """Build the request of an actor; with a `run_id`, only that run answers.

        Anybody may name a runner like another's, so the actor is a part of the name that holds the lease,
        without the character that ends it.
        """
        runner = f"{quote(actor, safe='@')}/{submit.runner}" if submit.runner else ""
        return cls(idempotency_key=submit.idempotency_key, runner=runner, run_id=run_id)


class SubmissionProgress(Model):
    """Answer to the query `progress`: run, step, whether a runner is needed, lease, last heartbeat."""

    run_id: str
    step: str
    needs_runner: bool = False
    lease_id: str = ""
    reached: Heartbeat = Heartbeat()


class RunCommand(StoreMessage):
    """A command about one run. Its DAG is in the commit log under `log_key`."""

    run_id: str
    log_key: str
    world_id: str


class AdmitRun(RunCommand):
    """Begin a run, and record the answer to the request with this idempotency key.

    `lease` is the one that the runner who asks will hold.
    """

    workflow_id: str
    idempotency_key: str
    lease: Lease | None = None


class MeasureCommand(RunCommand):
    """Compute the metrics of a run from its uploaded returns."""

    evidence: EvidenceRef


class RejectCommand(RunCommand):
    """Store why a run has no metrics. `examined`: its returns were uploaded, and the service refuses them."""

    strategy_id: str
    error_code: str
    error: str
    examined: bool = False


class ConcludeSubmission(StoreMessage):
    """Store the outcome of a run: the decision of `request_id`, or the error."""

    run_id: str
    world_id: str
    strategy_id: str
    request_id: str = ""
    error_code: str = ""
    error: str = ""


class Conclusion(Model):
    """Result of SubmissionWorkflow in brief. The whole SubmissionOutcome is in the store."""

    run_id: str
    status: str
    active: bool
    rank: int | None
    weight: float
    reason: str
    metrics: dict[str, float | None] = {}


class RunContextBody(Model):
    """The services' decisions about one run: execution domain, data, costs. Times are UTC.

    `contract_id` and `resource_policy` are the hashes of what the world judges by and of its limits, as they
    were when the run began.
    """

    run_id: str
    world_id: str
    strategy_id: str
    name: str
    context: ComputeContext
    bindings: StreamBindings
    execution: Execution
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    contract_id: str = ""
    resource_policy: str = ""


EvidenceKind = Literal["measured", "self_reported", "rejected", "failed", "shadow"]
"""`rejected`: the service refuses the returns. `failed`: there are no returns."""


class EvidenceBody(Model):
    """Evidence of a run: its metrics and the content hash of its returns, or why there are none.

    `self_reported`: why the returns are the author's own statement; empty where the service computed the
    same. `examined`: the service has read the returns; it has not where a run failed or was abandoned.
    `validation_id`: the hash of everything that the measurement depends on.
    """

    run_id: str
    world_id: str
    strategy_id: str
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    dataset_fingerprint: str = ""
    as_of: str | None = None
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    precheck: dict[str, object] = {}
    error_code: str = ""
    error: str = ""
    shadow: bool = False
    sectors: tuple[str, ...] = ()
    self_reported: str = ""
    interval_s: int = 0
    examined: bool = True
    validation_id: str = ""

    @property
    def kind(self) -> EvidenceKind:
        """What the evidence says, and so which other evidence it hides (`newest_evidence`)."""
        if self.shadow:
            return "shadow"
        if self.error_code:
            return "rejected" if self.examined else "failed"
        return "self_reported" if self.self_reported else "measured"

    @property
    def content_hash(self) -> str:
        """The hash of what was measured: the same for another run with the same figures and data.

        Not of the artifact's bytes, of which there are many with the same returns. Each rejection is its own.
        """
        figures = {name: None if value is None else f"{value:.6g}" for name, value in self.metrics.items()}
        return hash_of(
            {
                "metrics": figures,
                "data": self.dataset_fingerprint,
                "rejected": self.run_id if self.error_code else "",
                "self_reported": bool(self.self_reported),
            }
        )


class NodeValidation(Model):
    """A node in a world's view of the graph, with the EvalKey of its validation."""

    node_id: str
    execution_domain: str
    eval_key: str


class DiffResult(Model):
    """Result of a diff: new and reused NodeIDs, the topic of every node, and the version sentinel."""

    new: tuple[str, ...]
    reused: tuple[str, ...]
    topics: dict[str, str]
    sentinel_id: str
