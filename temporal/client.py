"""Connect to Temporal, and retry idempotent calls while the server is unavailable."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import (
    Client,
    TLSConfig,
    WorkflowExecutionDescription,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError, RPCStatusCode
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from activities.settings import TemporalSettings
from qmtl_sdk.contracts.errors import QmtlError
from temporal.plugin import QmtlPlugin
from workflows.search_attributes import SEARCH_ATTRIBUTES

T = TypeVar("T")

# Statuses that mean that the server or the run can't answer now. FAILED_PRECONDITION: tasks of the run fail,
# and it answers nothing until one succeeds, as on a worker that is overloaded.
_UNAVAILABLE = {
    RPCStatusCode.UNKNOWN,
    RPCStatusCode.UNAVAILABLE,
    RPCStatusCode.DEADLINE_EXCEEDED,
    RPCStatusCode.CANCELLED,
    RPCStatusCode.INTERNAL,
    RPCStatusCode.RESOURCE_EXHAUSTED,
    RPCStatusCode.FAILED_PRECONDITION,
}


def is_unavailable(error: BaseException) -> bool:
    """Whether an error means that the server or the run can't answer now, and not that it refused."""
    if isinstance(error, RPCError):
        return error.status in _UNAVAILABLE
    if isinstance(error, RuntimeError):  # what connecting raises
        return "transport" in str(error).lower() or "connect" in str(error).lower()
    return isinstance(error, WorkflowUpdateRPCTimeoutOrCancelledError)


def retriable_update_error(error: RPCError) -> RPCError:
    """Return the error of an update as one that is retried, where the next run may take the update.

    NOT_FOUND: the run ended before it received it.
    """
    if error.status != RPCStatusCode.NOT_FOUND:
        return error
    return RPCError(error.message, RPCStatusCode.UNAVAILABLE, error.raw_grpc_status)


async def retry_while_unavailable(call: Callable[[], Awaitable[T]], limit_s: float = 60.0) -> T:
    """Call, and retry for `limit_s` seconds while the server is unavailable. Returns the call's result.

    Raises QmtlError: E_UNAVAILABLE after that time.
    """
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda error: is_unavailable(error) and not _is_cancelled()),
            wait=wait_exponential(0.05, max=0.5),
            stop=stop_after_delay(limit_s),
            reraise=True,
        ):
            with attempt:
                return await call()
    except Exception as error:
        if _is_cancelled():  # the client takes a cancelled call for one that could not be made
            raise asyncio.CancelledError from error
        if is_unavailable(error):
            raise QmtlError(
                "E_UNAVAILABLE",
                f"Temporal can't take the request now: {error}",
                "qmtl status shows whether it runs and which workflows fail; then try again",
            ) from error
        raise
    raise AssertionError("unreachable")  # the loop returns or raises


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def connect(config: TemporalSettings, store_id: str | None = None, limit_s: float = 60.0) -> Client:
    """Connect a client with QMTL's plugin. Raises QmtlError: E_CONFIG without an address, E_UNAVAILABLE."""
    if config.address is None:
        raise QmtlError(
            "E_CONFIG", "temporal.address is not set", "run qmtl up, which starts a local server, or name one"
        )
    address = config.address
    tls: TLSConfig | bool | None = None
    if config.tls_cert and config.tls_key:
        tls = TLSConfig(
            client_cert=config.tls_cert.read_bytes(), client_private_key=config.tls_key.read_bytes()
        )
    elif config.api_key:
        tls = True
    plugins = [QmtlPlugin(store_id)]
    client = await retry_while_unavailable(
        lambda: Client.connect(
            address, namespace=config.namespace, api_key=config.api_key, tls=tls, plugins=plugins
        ),
        limit_s,
    )
    await retry_while_unavailable(lambda: _register(client, config.namespace), limit_s)
    return client


async def _register(client: Client, namespace: str) -> None:
    """Register the search attributes that workflows set."""
    service = client.operator_service
    registered = await service.list_search_attributes(ListSearchAttributesRequest(namespace=namespace))
    missing = [key.name for key in SEARCH_ATTRIBUTES if key.name not in registered.custom_attributes]
    if missing:
        kinds = dict.fromkeys(missing, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD)
        try:
            await service.add_search_attributes(
                AddSearchAttributesRequest(namespace=namespace, search_attributes=kinds)
            )
        except RPCError as error:
            if error.status != RPCStatusCode.ALREADY_EXISTS:  # another process registered them meanwhile
                raise


async def newest_run(client: Client, workflow_id: str, limit_s: float) -> WorkflowExecutionDescription | None:
    """Return what Temporal knows of the newest run of a workflow; None where it knows of none.

    Raises QmtlError (E_UNAVAILABLE) where Temporal cannot be reached for `limit_s` seconds.
    """
    try:
        return await retry_while_unavailable(
            lambda: client.get_workflow_handle(workflow_id).describe(), limit_s=limit_s
        )
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise
        return None
