"""The words between workflows and activities. Each names the store that it is meant for: a worker of another store refuses it."""

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.submission import Ack, EvidenceRef, Heartbeat


class Command(Model):
    store_id: str


class SubmissionInput(Command):
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


class Progress(Model):
    """Where a submission is: its step, whether it waits for a runner, the lease that is out, and how far the last runner came."""

    step: str
    needs_runner: bool = False
    lease_id: str = ""
    reached: Heartbeat = Heartbeat()


class RunCommand(Command):
    """About one run: whose DAG lies in the log under `log_key`."""

    run_id: str
    log_key: str
    world_id: str


class DiffCommand(RunCommand):
    execution_domain: str


class Admitted(Command):
    idempotency_key: str
    run_id: str
    ack: Ack


class MeasureCommand(RunCommand):
    evidence: EvidenceRef


class RejectCommand(RunCommand):
    """A run without metrics, and why."""

    strategy_id: str
    error_code: str
    error: str


class UpkeepInput(Command):
    """`now` stands in for the time at which the run began, where a person asks for another (ISO, UTC)."""

    now: str = ""


class UpkeepTopic(Command):
    topic: str
    now: str


class UpkeepDone(Model):
    """What a run of upkeep did; `failed` queues keep everything that they had."""

    looked_at: int
    archived: int
    dropped: int
    failed: tuple[str, ...] = ()


class EvaluationInput(Command):
    world_id: str
    judged: int = 0


class EvaluateRequest(Model):
    """Judge the world. The same `request_id` gets the same answer. A workflow that asks names itself in `reply_to` and `reply_run`."""

    request_id: str
    reason: str = ""
    asked_by: str = ""
    reply_to: str = ""
    reply_run: str = ""


class EvaluationRequest(Command):
    world_id: str
    request: EvaluateRequest


class JudgeCommand(Command):
    world_id: str
    run_id: str
    request_ids: tuple[str, ...]
    asked_by: str = ""


class Judgment(Model):
    """A stored decision in brief; `lines` are for people: strategy, verdict, why."""

    seq: int
    etag: str
    reason: str
    policy_version: int
    strategies: int
    lines: tuple[tuple[str, str, str], ...] = ()


class ConcludeCommand(Command):
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
