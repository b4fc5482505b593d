"""Inputs and results of SubmissionWorkflow and its activities."""

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.domains import ComputeContext
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, StreamBinding, SubmissionAck
from qmtl_sdk.contracts.worlds import Execution, UtcTime


class SubmissionInput(StoreMessage, OfStrategy):
    """One run of a submission. Its DAG is in the commit log under `log_key`, not in the history."""

    log_key: str
    world_id: str
    nodes: int
    heartbeat_timeout_s: float = 10.0
    abandon_after_s: float = 7 * 86_400.0


class Admit(Model):
    """Update: admit a submission and lease its computation to `runner`.

    Idempotent for the same runner. An empty name requests no lease.
    """

    idempotency_key: str
    runner: str


class SubmissionProgress(Model):
    """Answer to the query `progress`: step, whether a runner is needed, lease, last heartbeat."""

    step: str
    needs_runner: bool = False
    lease_id: str = ""
    reached: Heartbeat = Heartbeat()


class RunCommand(StoreMessage):
    """A command about one run. Its DAG is in the commit log under `log_key`."""

    run_id: str
    log_key: str
    world_id: str


class DiffCommand(RunCommand):
    """Compare the run's DAG with the global graph, and add what is new."""

    execution_domain: str


class RecordAdmission(StoreMessage):
    """Record in the commit log which run admitted a submission, and the answer."""

    idempotency_key: str
    run_id: str
    ack: SubmissionAck


class MeasureCommand(RunCommand):
    """Compute the metrics of a run from its uploaded returns."""

    evidence: EvidenceRef


class RejectCommand(RunCommand):
    """Store why a run has no metrics."""

    strategy_id: str
    error_code: str
    error: str


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
    """The services' decisions about one run: execution domain, data, costs. Times are UTC."""

    run_id: str
    world_id: str
    strategy_id: str
    name: str
    context: ComputeContext
    bindings: tuple[StreamBinding, ...]
    execution: Execution
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None


class EvidenceBody(Model):
    """Evidence of a run: its metrics and the content hash of its returns, or why there are none."""

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
