"""Worker deployment versions: which code carries on which run.

A version is the code that workflows run: `build_id` is the hash of its files. A run of a pinned workflow
stays with the version that began it, as long as a worker of that version lives; the others go to the current
version.

1. A worker that starts becomes the current version, unless its version was current before and a worker of the
   present one lives: a restart of an old worker during an upgrade takes nothing back.
2. Pinned runs whose version has no worker left are moved: from then on they follow the current version. The
   recorded histories (tests/replay) tell whether new code can carry them on.

Every worker repeats both. A worker on this machine is dead when its process is; one elsewhere when it has not
polled for longer than a poll takes.
"""

import asyncio
import hashlib
import socket
import time
from functools import cache
from pathlib import Path

import psutil
import structlog
from google.protobuf.field_mask_pb2 import FieldMask
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.deployment.v1 import WorkerDeploymentInfo
from temporalio.api.enums.v1 import TaskQueueType, WorkerDeploymentVersionStatus
from temporalio.api.taskqueue.v1 import PollerInfo, TaskQueue
from temporalio.api.workflow.v1 import VersioningOverride, WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeWorkerDeploymentRequest,
    SetWorkerDeploymentCurrentVersionRequest,
    UpdateWorkflowExecutionOptionsRequest,
)
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import WorkerDeploymentConfig

import activities.messages
import qmtl_sdk.contracts
import workflows
from temporal.client import is_unavailable
from workflows.options import WORKFLOW_QUEUE

DEPLOYMENT = "qmtl"
"""The name of the deployment that all workers of a namespace belong to."""

# What workflows execute: their own code, and the messages and contracts that they build and read.
_CODE = (workflows, activities.messages, qmtl_sdk.contracts)

# A poll lasts a minute at most; a worker that has begun none for longer is dead.
_POLL_LIMIT_S = 70.0

# Seconds between two looks at the versions, and between two tries while a version is not registered yet.
_CHECK_EVERY_S = 10.0
_RETRY_S = 0.05

# Seconds until the server must know the version of a worker that polls.
_REGISTER_LIMIT_S = 60.0

# Versions that were current before.
_REPLACED = (
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINING,
    WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED,
)

_log = structlog.get_logger()


@cache
def build_id() -> str:
    """Hash the code that this process runs workflows with."""
    found = hashlib.blake2b(digest_size=8)
    for package in _CODE:
        (folder,) = (Path(path) for path in package.__path__)
        for file in sorted(folder.rglob("*.py")):
            found.update(f"{package.__name__}/{file.relative_to(folder)}\0".encode())
            found.update(file.read_bytes())
    return found.hexdigest()


def deployment(build: str) -> WorkerDeploymentConfig:
    """Build the configuration of a worker of this version."""
    return WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name=DEPLOYMENT, build_id=build),
        use_worker_versioning=True,
        default_versioning_behavior=VersioningBehavior.AUTO_UPGRADE,
    )


class Versions:
    """The versions of the deployment, as a worker of the version `build` sees and changes them."""

    def __init__(self, client: Client, build: str) -> None:
        self._client = client
        self._build = build
        self._service = client.workflow_service

    async def begin(self) -> None:
        """Become the current version if this version should be, and move orphaned runs. The worker polls."""
        deadline = time.monotonic() + _REGISTER_LIMIT_S
        while True:
            try:
                return await self.check()
            except RPCError as error:  # the server does not know the worker's version yet
                transient = error.status in (RPCStatusCode.NOT_FOUND, RPCStatusCode.FAILED_PRECONDITION)
                if not (transient or is_unavailable(error)) or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(_RETRY_S)

    async def repeat_checks(self) -> None:
        """Repeat `check`, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_EVERY_S)
            try:
                await self.check()
            except RPCError as error:
                _log.warning("the versions of workers can't be read", why=str(error))

    async def check(self) -> None:
        """Become the current version if this version should be, and move orphaned runs."""
        request = DescribeWorkerDeploymentRequest(
            namespace=self._client.namespace, deployment_name=DEPLOYMENT
        )
        found = await self._service.describe_worker_deployment(request)
        info = found.worker_deployment_info
        others = self._open_versions(info)
        current = info.routing_config.current_deployment_version.build_id
        if current == self._build and not others:
            return
        polled = await self._polled_builds()
        if current != self._build:
            if current in polled and self._was_replaced(info):
                return
            await self._set_current(found.conflict_token)
        for build in others - polled:
            await self._move_runs(build)

    def _open_versions(self, info: WorkerDeploymentInfo) -> set[str]:
        """List the other versions that may have pinned runs."""
        drained = WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED
        return {
            item.deployment_version.build_id
            for item in info.version_summaries
            if item.status != drained and item.deployment_version.build_id != self._build
        }

    def _was_replaced(self, info: WorkerDeploymentInfo) -> bool:
        return any(
            item.deployment_version.build_id == self._build and item.status in _REPLACED
            for item in info.version_summaries
        )

    async def _polled_builds(self) -> set[str]:
        """List the versions that a live worker polls for."""
        request = DescribeTaskQueueRequest(
            namespace=self._client.namespace,
            task_queue=TaskQueue(name=WORKFLOW_QUEUE),
            task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        found = await self._service.describe_task_queue(request)
        return {item.deployment_options.build_id for item in found.pollers if _is_alive(item)}

    async def _set_current(self, conflict_token: bytes) -> None:
        request = SetWorkerDeploymentCurrentVersionRequest(
            namespace=self._client.namespace,
            deployment_name=DEPLOYMENT,
            build_id=self._build,
            conflict_token=conflict_token,
            identity=self._client.identity,
            ignore_missing_task_queues=True,
        )
        await self._service.set_worker_deployment_current_version(request)
        _log.info("this worker's code is the current version", build=self._build)

    async def _move_runs(self, build: str) -> None:
        """Let the runs that are pinned to a version without workers follow the current version."""
        query = (
            f"TemporalWorkerDeploymentVersion = '{DEPLOYMENT}:{build}' AND ExecutionStatus = 'Running'"
            " AND TemporalWorkflowVersioningBehavior = 'Pinned'"
        )
        async for run in self._client.list_workflows(query):
            request = UpdateWorkflowExecutionOptionsRequest(
                namespace=self._client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=run.id, run_id=run.run_id),
                workflow_execution_options=WorkflowExecutionOptions(
                    versioning_override=VersioningOverride(auto_upgrade=True)
                ),
                update_mask=FieldMask(paths=["versioning_override"]),
            )
            try:
                await self._service.update_workflow_execution_options(request)
            except RPCError as error:
                if error.status != RPCStatusCode.NOT_FOUND:
                    raise
                continue  # it has ended meanwhile
            _log.info("moved a run to the current version", workflow=run.id, build=build)


def _is_alive(poller: PollerInfo) -> bool:
    """Check whether a poller's process lives. Its identity is pid@host."""
    pid, _, host = poller.identity.partition("@")
    if host == socket.gethostname() and pid.isdigit():
        try:
            return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    return time.time() - poller.last_access_time.seconds < _POLL_LIMIT_S
