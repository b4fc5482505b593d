"""An upgrade of the code under running workflows: each run is carried on by code that may."""

import asyncio
import shutil
import time
from pathlib import Path

from temporalio.api.workflowservice.v1 import DescribeWorkerDeploymentRequest
from temporalio.service import RPCError, RPCStatusCode

from activities.messages.apply import ApprovalSignal
from activities.messages.promotion import PromotionInput
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.submission import SubmissionAck
from temporal.versions import DEPLOYMENT, build_id
from tests.support import ROOT
from tests.support.author import Author
from tests.support.served import Served, until
from tests.support.workers import LIMIT_S, workers
from workflows.apply import ApplyWorkflow
from workflows.ids import apply_id, promotion_id
from workflows.options import promotion_options
from workflows.promotion import PromotionWorkflow

PACKAGES = ("activities", "api", "qmtl_sdk", "temporal", "workflows")


def earlier_code(folder: Path) -> str:
    """A copy of the code, with other workflow code that does the same. What PYTHONPATH names."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "workflows" / "ids.py").open("a") as file:
        file.write("\n# The code of the release before.\n")
    return str(folder)


# How the server answers while its own workflow of versions is busy.
BUSY = (RPCStatusCode.CANCELLED, RPCStatusCode.DEADLINE_EXCEEDED)


async def current(stage: Served) -> str:
    """The build that is the current version; empty where the server does not know of any yet.

    The server answers from a workflow of its own, which may be busy with a change for seconds.
    """
    request = DescribeWorkerDeploymentRequest(namespace="default", deployment_name=DEPLOYMENT)
    deadline = time.monotonic() + LIMIT_S
    while True:
        try:
            found = await stage.client.workflow_service.describe_worker_deployment(request)
            break
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                return ""
            if error.status not in BUSY or time.monotonic() > deadline:
                raise
    return found.worker_deployment_info.routing_config.current_deployment_version.build_id


async def version(stage: Served, workflow_id: str) -> str:
    """The build that completed the last task of a workflow."""
    found = await stage.client.get_workflow_handle(workflow_id).describe()
    info = found.raw_description.workflow_execution_info.versioning_info
    return info.deployment_version.build_id


async def decided_by(stage: Served, author: Author, ack: SubmissionAck) -> str:
    """Complete a submission. The build that ended its run."""
    assert (await author.completes(ack)).status == "decided"
    await stage.client.get_workflow_handle(ack.workflow_id).result()
    return await version(stage, ack.workflow_id)


async def promotion(stage: Served) -> str:
    """A promotion whose apply waits for approval; the apply's run_id."""
    desk, strategy = stage.desk, stage.desk.strategies[0]
    await stage.client.start_workflow(
        PromotionWorkflow.run,
        PromotionInput(
            store_id=stage.store_id,
            world_id=desk.world,
            strategy_id=strategy,
            to="dryrun",
            requested_by="olga",
        ),
        **promotion_options(desk.world, strategy, "s", "dryrun"),
    )

    async def waits() -> str:
        found = desk.requests.newest(desk.world, 1)
        return found[0].run_id if found and found[0].state == "approval" else ""

    return await until(waits, "apply that waits", LIMIT_S)


def test_every_run_is_carried_on_by_code_that_may(tmp_path: Path) -> None:
    async def run() -> None:
        async with workers(tmp_path / "home") as (stage, started):
            desk = stage.desk
            first_worker = await started.start(earlier_code(tmp_path / "earlier"))
            earlier = await until(lambda: current(stage), "current version", LIMIT_S)
            author = Author(stage)
            first, second = await author.submits(1), await author.submits(2)
            apply = await promotion(stage)

            await started.start(str(ROOT))
            assert await current(stage) == build_id() != earlier
            assert await decided_by(stage, author, await author.submits(3)) == build_id()
            assert await decided_by(stage, author, first) == earlier, "pinned to the worker that lives"

            started.kill(first_worker)  # the earlier code is gone for good
            assert await decided_by(stage, author, second) == build_id()
            stored = desk.approvals.record(desk.world, apply, "ana", "approve", ApprovalBody())
            await stage.client.get_workflow_handle_for(ApplyWorkflow.run, apply_id(desk.world)).signal(
                ApplyWorkflow.approve, ApprovalSignal(run_id=apply, approval_id=stored.approval_id)
            )
            ended = await stage.client.get_workflow_handle_for(
                PromotionWorkflow.run, promotion_id(desk.world, desk.strategies[0])
            ).result()
            assert ended.outcome == "completed"
            assert desk.requests.find(desk.world, apply).outcome == "completed"
            for workflow_id in (apply_id(desk.world), promotion_id(desk.world, desk.strategies[0])):
                assert await version(stage, workflow_id) == build_id()

    asyncio.run(run())


def test_a_worker_of_replaced_code_that_starts_again_does_not_become_current(tmp_path: Path) -> None:
    async def run() -> None:
        async with workers(tmp_path / "home") as (stage, started):
            earlier = earlier_code(tmp_path / "earlier")
            first = await started.start(earlier)
            replaced = await until(lambda: current(stage), "current version", LIMIT_S)
            started.kill(first)
            present = await started.start(str(ROOT))
            await started.start(earlier)
            assert await current(stage) == build_id() != replaced
            started.kill(present)  # an upgrade that is taken back: nobody runs the present code

            async def back() -> bool:
                return await current(stage) == replaced

            await until(back, "earlier version", LIMIT_S)

    asyncio.run(run())
