"""One plugin wires clients, workers, tests and the replayer: converter, workflows, and the rules that hold for every activity.

A QmtlError becomes an ApplicationError with its code as type, not retried where trying again can't help. A command that names another store is
refused, so that two stacks on one Temporal never do each other's work.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.errors import QmtlError
from workflows.apply import ApplyWorkflow
from workflows.evaluation import EvaluationWorkflow
from workflows.promotion import PromotionWorkflow
from workflows.renewal import RenewalWorkflow
from workflows.submission import SubmissionWorkflow
from workflows.upkeep import UpkeepWorkflow

LEASE = "compute_lease"
WORKFLOWS = (
    SubmissionWorkflow,
    EvaluationWorkflow,
    PromotionWorkflow,
    ApplyWorkflow,
    RenewalWorkflow,
    UpkeepWorkflow,
)


class QmtlPlugin(SimplePlugin):
    """`store_id` is the store that a worker serves; a client or replayer has none."""

    def __init__(self, store_id: str | None = None) -> None:
        interceptors = [ActivityRules(store_id)] if store_id else []
        super().__init__(
            "qmtl", data_converter=pydantic_data_converter, interceptors=interceptors, workflows=WORKFLOWS
        )


class ActivityRules(Interceptor):
    def __init__(self, store_id: str) -> None:
        self._store_id = store_id

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Activity(next, self._store_id)


class _Activity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, store_id: str) -> None:
        super().__init__(next)
        self._store_id = store_id

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        for argument in input.args:
            if isinstance(argument, StoreMessage) and argument.store_id != self._store_id:
                # Retried: the worker that serves the right store will take it.
                raise ApplicationError(
                    f"this worker serves store {self._store_id[:8]}, the work belongs to {argument.store_id[:8]}",
                    type="E_FOREIGN_STORE",
                )
        try:
            async with _heartbeating(in_thread=not inspect.iscoroutinefunction(input.fn)):
                return await super().execute_activity(input)
        except QmtlError as error:
            raise application_error(error) from error


@asynccontextmanager
async def _heartbeating(in_thread: bool) -> AsyncIterator[None]:
    """Heartbeat for an activity that asks for it, while this worker lives: one that was killed is replaced as soon as the beats are missed.

    A lease is beaten by the runner that holds it, never by the worker that hands it out.
    """
    info = activity.info()
    if info.is_local or info.heartbeat_timeout is None or info.activity_type == LEASE:
        yield
        return
    task = asyncio.create_task(_heartbeat(info.heartbeat_timeout.total_seconds() / 3, in_thread))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _heartbeat(every_s: float, in_thread: bool) -> None:
    while True:
        if (
            in_thread
        ):  # the heartbeat of a synchronous activity waits for the loop, and so must not be called on it
            await asyncio.to_thread(activity.heartbeat)
        else:
            activity.heartbeat()
        await asyncio.sleep(every_s)


def application_error(error: QmtlError) -> ApplicationError:
    """A QmtlError as workflows see it: `type` is the code; details hold the remedy and the facts."""
    return ApplicationError(
        error.message,
        {"remedy": error.remedy, "details": error.details},
        type=error.code,
        non_retryable=error.status < 500,
    )


def refused(error: WorkflowUpdateFailedError) -> Exception:
    """What an update was refused with; the failure itself where that was no refusal."""
    return qmtl_error(error.cause) if isinstance(error.cause, ApplicationError) else error


def qmtl_error(error: ApplicationError) -> QmtlError:
    """The QmtlError that an ApplicationError was made from."""
    facts = error.details[0] if error.details and isinstance(error.details[0], dict) else {}
    code = error.type if error.type and error.type.startswith("E_") else "E_INTERNAL"
    return QmtlError(code, error.message, str(facts.get("remedy", "")), **facts.get("details", {}))
