"""`/health` and `qmtl status`: what is missing, what fails, and what that means for orders."""

import asyncio
import inspect
import os
import re
import signal
import time
import uuid
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingWorkflowTaskState
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.worker import Worker

from activities.applies.acknowledgements import SqlApplyAcks
from api import gateway, health
from api.health import HealthCheck
from api.loops import BackgroundLoops
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.submission import StrategySubmit
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.stream import StreamClient
from temporal import recovery
from temporal.probe import TemporalProbe
from temporal.submissions import SubmissionService
from tests.e2e.failing_gateway import CALLS
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.served import Served, served, until
from tests.support.statements import statements
from tests.support.strategies import Trend
from workflows.ids import submission_id
from workflows.options import WORKFLOW_QUEUE


def fault(machine: Machine, loop: str) -> str:
    """What the status says of a loop's fault. Of several Gateways, each is asked in turn."""
    with machine.client() as client:
        found: dict[str, str] = client.gateway_status()["faults"]
    return found.get(f"loop {loop}", "")


def without(machine: Machine, name: str) -> dict[str, Any]:
    """The health of a machine where a process of the name is missing; empty where none is."""
    found = machine.health()
    return found if name in found["missing"] else {}


def test_each_process_that_is_missing_is_named_with_what_that_means(own_machine: Machine) -> None:
    """With relay, router and worker dead, health and status said ok."""
    own_machine.up()
    starts = {
        "router": own_machine.start_router,
        "relay": own_machine.start_relay,
        "worker": own_machine.start_worker,
        "temporal": own_machine.start_temporal,
    }
    for name, start in starts.items():
        killed = time.monotonic()
        own_machine.kill(name)
        found = wait_for(partial(without, own_machine, name), f"{name} to be missed")
        assert time.monotonic() - killed < 10
        assert found["status"] == "degraded"
        assert "orders" in found["missing"][name]
        start()
        wait_for(lambda: own_machine.health()["status"] == "ok", "health")
    # Answers 200 whatever is degraded: this Gateway accepts orders and halts.
    own_machine.kill("router")
    wait_for(lambda: own_machine.health()["status"] == "degraded", "degraded health")
    assert httpx.get(f"{own_machine.url}/health", trust_env=False).status_code == 200
    as_it_is = {"gateway": "running", "worker": "running", "relay": "running", "router": "dead"}
    with own_machine.client() as client:
        wait_for(
            lambda: (
                as_it_is == {item["name"]: item["state"] for item in client.gateway_status()["processes"]}
            ),
            "the states of all processes",
        )


def test_every_loop_of_a_gateway_comes_back_after_whatever_it_raises(own_machine: Machine) -> None:
    """A loop that met anything but a QmtlError ended, and health said ok."""
    own_machine.start_temporal()
    own_machine.start_worker()
    own_machine.start_relay()
    own_machine.start_router()
    own_machine.start_gateway("tests.e2e.failing_gateway")
    wait_for(lambda: own_machine.health()["status"] == "ok", "health")
    fail = own_machine.home / "fail"
    fail.mkdir()
    database = own_machine.database()
    try:
        desk = Desk(database, "acks")
        run = desk.request("dryrun")
        with (
            own_machine.client() as client,
            StreamClient([client], Subscribe(world_id="acks")) as stream,  # else no revoked tokens are read
        ):
            assert stream.ready()
            for name in CALLS:
                (fail / name).touch()
                if name == "acknowledgements":
                    change = desk.freeze(run)
                seen = wait_for(
                    lambda name=name: own_machine.health()["faults"].get(f"loop {name}"),  # type: ignore[misc]
                    f"fault of {name}",
                )
                assert "ZeroDivisionError" in seen
                assert "secret" not in seen, "who has no token sees no texts of errors"
                secret = wait_for(partial(fault, own_machine, name), "fault in status")
                assert f"the secret of {name}" in secret
                (fail / name).unlink()
                wait_for(lambda: own_machine.health()["status"] == "ok", f"{name} again", 120)
        acks = SqlApplyAcks(database)
        wait_for(lambda: acks.missing("acks", change, "freeze") == (), "the acknowledgement that failed")
    finally:
        database.close()


def test_every_loop_that_a_gateway_starts_is_one_of_those() -> None:
    started = set(re.findall(r'start\("([^"]+)"', inspect.getsource(gateway._start_loops)))
    assert started == {*CALLS, "heartbeat"}, "the heartbeat's loop calls nothing that could raise"


def test_health_costs_the_same_whatever_waits_and_loads_no_body(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token, it loaded every waiting submission with its body."""
    monkeypatch.setattr(health, "_DATABASE_S", 60.0)  # a busy machine answers late, and is asked once here

    async def run() -> None:
        async with served(tmp_path) as stage:
            for symbol in ("AAPL", "JNJ", "KO", "MSFT", "PG"):
                _logged(stage, symbol)
            check = HealthCheck(stage.stores, TemporalProbe(stage.client), BackgroundLoops())
            with statements() as read:
                found = await asyncio.gather(*(check.measure() for _ in range(50)))
            assert {item.health.log_waiting for item in found} == {5}
            about = [statement for statement, _ in read if "commit_log" in statement]
            assert len(about) == 1, "fifty who ask at once get one answer"
            assert "body" not in about[0]
            assert "LIMIT" in about[0]
            with stage.stores.database.read() as session:
                plan = session.connection().exec_driver_sql(
                    "EXPLAIN QUERY PLAN SELECT seq FROM commit_log "
                    "WHERE run_id IS NULL AND refused IS NULL LIMIT 1000"
                )
                assert "commit_log_waiting" in str(plan.fetchall())

    asyncio.run(run())


def test_a_temporal_that_hangs_delays_health_by_two_seconds_at_most(own_machine: Machine) -> None:
    own_machine.up()
    os.kill(own_machine.pids["temporal"], signal.SIGSTOP)
    try:
        slowest = 0.0

        def missed() -> bool:
            nonlocal slowest
            begun = time.monotonic()
            found = "temporal" in own_machine.health()["missing"]
            slowest = max(slowest, time.monotonic() - begun)
            return found

        wait_for(missed, "Temporal to be missed", 10)
        assert slowest < 4
    finally:
        os.kill(own_machine.pids["temporal"], signal.SIGCONT)


async def _stuck(client: Client, submit: StrategySubmit) -> str:
    """Take the workflow id of a submission for a workflow whose task fails each time."""
    workflow_id = submission_id(submit.world_id, submit.dag.strategy_id)
    await client.start_workflow(
        "NoSuchWorkflow", id=workflow_id, task_queue=WORKFLOW_QUEUE, task_timeout=timedelta(seconds=1)
    )
    return workflow_id


def _logged(stage: Served, symbol: str) -> StrategySubmit:
    build = BuiltStrategy(Trend(symbol, 13))
    submit = StrategySubmit(
        world_id=stage.desk.world,
        dag=build.dag,
        node_ids_crc32=build.crc32,
        idempotency_key=uuid.uuid4().hex,
    )
    stage.stores.log.append(submit, "ana")
    return submit


def test_a_submission_whose_workflow_task_keeps_failing_blocks_nobody_and_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recovery waited for it for ever, and no later submission was started."""
    monkeypatch.setattr(recovery, "_RETRY_S", 0.1)

    async def run() -> None:
        async with served(tmp_path) as stage:
            stores = stage.stores
            service = SubmissionService(
                stage.client, stage.store_id, stores.log, stores.runs, stores.decisions, 10.0
            )
            stuck = _logged(stage, "KO")
            workflow_id = await _stuck(stage.client, stuck)
            for symbol in ("AAPL", "JNJ", "MSFT"):
                _logged(stage, symbol)
            recovering = asyncio.create_task(service.recover())

            async def others_are_done() -> bool:
                return stores.log.waiting(10) == [stuck.idempotency_key]

            await until(others_are_done, "recovery of the others")
            assert not recovering.done(), "they did not wait for it"
            await recovering
            found = TemporalProbe(stage.client)

            async def failing() -> dict[str, str]:
                await found.look()
                return found.failing

            shown = await until(failing, "failing workflow", 60)
            assert list(shown) == [workflow_id]
            assert "its workflow task has failed" in shown[workflow_id]
            await stage.client.get_workflow_handle(workflow_id).terminate()

            async def none_fails() -> bool:
                await found.look()
                return found.failing == {}

            await until(none_fails, "the end of the failing workflow")

            async def recovered() -> bool:
                await service.recover()
                return stores.log.waiting(10) == []

            await until(recovered, "a later try", 60)

    asyncio.run(run())


def test_a_workflow_that_was_terminated_between_two_attempts_fails_no_longer(tmp_path: Path) -> None:
    """Temporal keeps its task, which no worker has taken: it was shown as failing for ever."""

    async def run() -> None:
        async with served(tmp_path, worker=False) as stage:
            submit = _logged(stage, "KO")
            probe = TemporalProbe(stage.client)
            async with Worker(stage.client, task_queue=WORKFLOW_QUEUE):
                workflow_id = await _stuck(stage.client, submit)

                async def failing() -> bool:
                    await probe.look()
                    return workflow_id in probe.failing

                await until(failing, "failing workflow")

            async def waits_for_a_worker() -> bool:
                request = DescribeWorkflowExecutionRequest(
                    namespace=stage.client.namespace, execution=WorkflowExecution(workflow_id=workflow_id)
                )
                found = await stage.client.workflow_service.describe_workflow_execution(request)
                state = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
                return found.pending_workflow_task.state == state

            await until(waits_for_a_worker, "attempt that no worker takes")
            await stage.client.get_workflow_handle(workflow_id).terminate()
            await probe.look()
            assert probe.failing == {}

    asyncio.run(run())
