"""The plugin of all clients, workers and replayers: converter, workflows, and rules for every activity.

Every workflow of the package `workflows` is served. A new class of activities is added to temporal.worker.

A QmtlError becomes an ApplicationError with its code as type. It is not retried where a retry can't help. A
command for another store is refused, so that two stacks on one Temporal server never do each other's work.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from temporalio import activity
from temporalio.client import WorkflowUpdateFailedError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

import workflows
from activities.messages.base import StoreMessage
from qmtl_sdk.contracts.errors import QmtlError
from temporal.sandbox import SharedImportsRunner

# The activity that its runner heartbeats, not the worker.
_LEASE = "compute_lease"


def _workflows() -> tuple[type, ...]:
    """Find every workflow in the modules of the package `workflows`: the classes named `…Workflow`."""
    modules = [import_module(f"workflows.{found.name}") for found in iter_modules(workflows.__path__)]
    return tuple(
        item
        for module in modules
        for _, item in inspect.getmembers(module, inspect.isclass)
        if item.__module__ == module.__name__ and item.__name__.endswith("Workflow")
    )


WORKFLOWS = _workflows()
"""What workers serve and the replayer replays."""


class QmtlPlugin(SimplePlugin):
    """Wires a client, its workers and the replayer. `store_id` is the store that a worker serves."""

    def __init__(self, store_id: str | None = None) -> None:
        interceptors = [ActivityRules(store_id)] if store_id else []
        super().__init__(
            "qmtl",
            data_converter=pydantic_data_converter,
            interceptors=interceptors,
            workflows=WORKFLOWS,
            workflow_runner=SharedImportsRunner(),
        )


class ActivityRules(Interceptor):
    """Applies the rules of every activity: its store, its heartbeat, its errors."""

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
                # Retryable: another try may reach a worker of the right store.
                raise ApplicationError(
                    f"this worker serves store {self._store_id[:8]},"
                    f" the work belongs to {argument.store_id[:8]}",
                    type="E_FOREIGN_STORE",
                )
        try:
            async with _heartbeating(in_thread=not inspect.iscoroutinefunction(input.fn)):
                return await super().execute_activity(input)
        except QmtlError as error:
            raise application_error(error) from error


@asynccontextmanager
async def _heartbeating(in_thread: bool) -> AsyncIterator[None]:
    """Heartbeat for an activity with a heartbeat timeout, so that another worker replaces a killed one soon.

    The runner that holds a lease sends the lease's heartbeats; a worker never does.
    """
    info = activity.info()
    if info.is_local or info.heartbeat_timeout is None or info.activity_type == _LEASE:
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
        ):  # the heartbeat of a synchronous activity waits for the loop, so it can't be called on it
            await asyncio.to_thread(activity.heartbeat)
        else:
            activity.heartbeat()
        await asyncio.sleep(every_s)


def application_error(error: QmtlError) -> ApplicationError:
    """Convert a QmtlError for Temporal: `type` is the code, the details hold its remedy and details."""
    return ApplicationError(
        error.message,
        {"remedy": error.remedy, "details": error.details},
        type=error.code,
        non_retryable=error.status < 500,
    )


def update_refusal(error: WorkflowUpdateFailedError) -> Exception:
    """Return the QmtlError that an update was refused with, or the failure itself if it was no refusal."""
    return qmtl_error(error.cause) if isinstance(error.cause, ApplicationError) else error


def qmtl_error(error: ApplicationError) -> QmtlError:
    """Convert an ApplicationError back to the QmtlError that it was made from."""
    facts = error.details[0] if error.details and isinstance(error.details[0], dict) else {}
    code = error.type if error.type and error.type.startswith("E_") else "E_INTERNAL"
    return QmtlError(code, error.message, str(facts.get("remedy", "")), **facts.get("details", {}))
