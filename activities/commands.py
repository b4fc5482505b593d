"""The words between workflows and activities. Each names the store that it is meant for: a worker of another store refuses it."""

from activities.worlds.store import GateChange
from qmtl_sdk.contracts.applies import Approval, Stage
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, SubmissionAck


class StoreMessage(Model):
    store_id: str


class SubmissionInput(StoreMessage):
    """One run of a submission. The DAG stays in the commit log, under `log_key`: histories carry references, not data."""

    log_key: str
    world_id: str
    strategy_id: str
    name: str
    nodes: int
    heartbeat_timeout_s: float = 10.0
    abandon_after_s: float = 7 * 86_400.0


class Admit(Model):
    """A runner asks to compute. The same runner may ask again; an empty name asks for no lease."""

    idempotency_key: str
    runner: str


class SubmissionProgress(Model):
    """Where a submission is: its step, whether it waits for a runner, the lease that is out, and how far the last runner came."""

    step: str
    needs_runner: bool = False
    lease_id: str = ""
    reached: Heartbeat = Heartbeat()


class RunCommand(StoreMessage):
    """About one run: whose DAG lies in the log under `log_key`."""

    run_id: str
    log_key: str
    world_id: str


class DiffCommand(RunCommand):
    execution_domain: str


class RecordAdmission(StoreMessage):
    idempotency_key: str
    run_id: str
    ack: SubmissionAck


class MeasureCommand(RunCommand):
    evidence: EvidenceRef


class RejectCommand(RunCommand):
    """A run without metrics, and why."""

    strategy_id: str
    error_code: str
    error: str


class UpkeepInput(StoreMessage):
    """`now` stands in for the time at which the run began, where a person asks for another (ISO, UTC)."""

    now: str = ""


class UpkeepTopic(StoreMessage):
    topic: str
    now: str


class UpkeepDone(Model):
    """What a run of upkeep did; `failed` queues keep everything that they had."""

    looked_at: int
    archived: int
    dropped: int
    failed: tuple[str, ...] = ()


class RenewalInput(StoreMessage):
    """Which store's worlds."""


class RenewalDone(Model):
    """The worlds whose judgment was asked for."""

    worlds: tuple[str, ...]


class EvaluationInput(StoreMessage):
    world_id: str
    judged: int = 0


class EvaluationRequest(Model):
    """Judge the world. The same `request_id` gets the same answer. A `renewal` only makes the decision fresh again: it counts as no further pass or failure. A workflow that asks names itself in `reply_to` and `reply_run`."""

    request_id: str
    reason: str = ""
    asked_by: str = ""
    renewal: bool = False
    reply_to: str = ""
    reply_run: str = ""


class RequestEvaluation(StoreMessage):
    world_id: str
    request: EvaluationRequest


class JudgeCommand(StoreMessage):
    world_id: str
    run_id: str
    request_ids: tuple[str, ...]
    asked_by: str = ""
    renewal: bool = False


class Judgment(Model):
    """A stored decision in brief; `lines` are for people: strategy, verdict, why."""

    seq: int
    etag: str
    reason: str
    policy_version: int
    strategies: int
    lines: tuple[tuple[str, str, str], ...] = ()


class ConcludeSubmission(StoreMessage):
    run_id: str
    world_id: str
    strategy_id: str
    request_id: str = ""
    error_code: str = ""
    error: str = ""


class Conclusion(Model):
    """How a run ended, in brief; the whole Outcome lies in the store."""

    run_id: str
    status: str
    active: bool
    rank: int | None
    weight: float
    reason: str
    metrics: dict[str, float | None] = {}


# applies


class ApplyInput(StoreMessage):
    """One apply. The plan stays in the store: histories carry what is waited for, not what is changed."""

    world_id: str
    run_id: str


class ApplyBrief(Model):
    """The plan as the workflow needs it: its stages, and what people are shown."""

    title: str
    reason: str
    requested_by: str
    stages: tuple[Stage, ...]
    diff: tuple[tuple[str, str, str], ...]
    left_out: tuple[str, ...] = ()
    etag: str


class ApprovalSignal(Model):
    """A signal of approval or rejection. The Gateway sends the `approval_id` of what it has stored; a signal sent by hand gives `actor` and `reason`, and is marked direct."""

    run_id: str = ""
    approval_id: str = ""
    actor: str = ""
    reason: str = ""


class DirectApproval(ApplyInput):
    approval_id: str
    actor: str
    verdict: str
    reason: str


class ApprovalList(Model):
    approvals: tuple[Approval, ...]


class DrainCommand(ApplyInput):
    frozen: GateChange
    timeout_s: float
    ack_timeout_s: float


class AwaitAcks(ApplyInput):
    told: GateChange
    phase: str
    timeout_s: float


class AckResult(Model):
    """How a wait ended: who had not said that they heard, and how long it took."""

    missing: tuple[str, ...] = ()
    waited_s: float = 0.0


class ConcludeApply(ApplyInput):
    outcome: str
    reason: str


class AbortRequest(Model):
    run_id: str
    actor: str
    reason: str = ""


class Aborted(Model):
    run_id: str
    step: str


class ApplyEnd(Model):
    """How an apply ended."""

    run_id: str
    outcome: str
    reason: str = ""
    epoch: int = 0


class ApplyView(Model):
    """The answer of the query `plan`: where the apply is, and what it waits for."""

    run_id: str
    title: str
    step: str
    waits_for: str
    approvals: tuple[str, ...] = ()


class PromotionInput(StoreMessage):
    """One strategy on its way to dryrun or live. `run_id` and `applies`: what a run that continues as new goes on with."""

    world_id: str
    strategy_id: str
    to: str
    requested_by: str
    reason: str = ""
    run_id: str = ""
    applies: int = 0


class CheckConditions(StoreMessage):
    world_id: str
    strategy_id: str
    to: str


class PromotionApply(StoreMessage):
    """The apply that takes a strategy to the mode `target`."""

    world_id: str
    strategy_id: str
    run_id: str
    target: str
    requested_by: str
    reason: str


class ApplyRequestResult(Model):
    """`refused`: why not; empty where it went well."""

    refused: str = ""


class PublishPromotion(StoreMessage):
    world_id: str
    strategy_id: str
    run_id: str
    state: str
    actor: str
    reason: str


class EndPromotion(Model):
    actor: str
    reason: str = ""


class PromotionEnd(Model):
    outcome: str
    reason: str = ""
