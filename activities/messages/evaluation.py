"""Inputs and results of EvaluationWorkflow, RenewalWorkflow and their activities."""

from activities.messages.base import HistoryMessage, StoreMessage


class RenewalInput(StoreMessage):
    """The store whose worlds are renewed."""


class RenewalDone(HistoryMessage):
    """The worlds for which a judgment was requested."""

    worlds: tuple[str, ...]


class EvaluationRequest(HistoryMessage):
    """Request a judgment of the world.

    Idempotent: the same `request_id` gets the same decision. `reply_to` and `reply_run` name the workflow run
    to signal when it is done.
    """

    request_id: str
    reason: str = ""
    requested_by: str = ""
    reply_to: str = ""
    reply_run: str = ""


class EvaluationInput(StoreMessage):
    """The world to judge. A run that continued as new gave `judged`, its judgments, and who still waits."""

    world_id: str
    judged: int = 0
    waiting: tuple[EvaluationRequest, ...] = ()


class RequestEvaluation(StoreMessage):
    """Send an evaluation request to a world's EvaluationWorkflow, starting it if it does not run."""

    world_id: str
    request: EvaluationRequest


class JudgeCommand(StoreMessage):
    """Judge a world once, for all of these requests."""

    world_id: str
    run_id: str
    request_ids: tuple[str, ...]
    requested_by: str = ""


class Judgment(HistoryMessage):
    """Summary of a stored decision. Each of `lines` is strategy, result, reason."""

    seq: int
    etag: str
    reason: str
    policy_version: int
    strategies: int
    lines: tuple[tuple[str, str, str], ...] = ()
