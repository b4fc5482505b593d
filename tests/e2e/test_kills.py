"""Nothing acknowledged is lost and nothing is done twice, whatever dies at whatever step."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from temporalio.worker import Replayer

from activities.submissions.log import SqlCommitLog
from qmtl_sdk import Runner, SubmitResult
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionMeta
from qmtl_sdk.nodes.strategy import BuiltStrategy
from temporal.admission import admit
from temporal.client import connect
from temporal.plugin import QmtlPlugin
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Slow, Trend
from tests.support.submission_checker import submission_violations
from tests.support.worlds import POLICY, world
from workflows.ids import submission_id

STEPS = (
    "before:admit_run",
    "after:admit_run",
    "before:compute_lease",
    "after:measure",
    "before:request_evaluation",
    "after:judge",
    "after:conclude",
)


def prepared(machine: Machine) -> None:
    with machine.client() as client:
        client.create_world(world(), POLICY)


def kept(machine: Machine, result: SubmitResult, runs: int = 1) -> None:
    """One run, one decision, and every promise kept."""
    assert result.active
    assert result.ws.decision is not None
    database = machine.database()
    try:
        assert submission_violations(database) == []
        with database.read() as session:
            for name, count in (
                ("run_context", runs),
                ("outcome", runs),
                ("evidence", runs),
                ("sentinel", 1),
                ("binding", 1),
            ):
                assert (
                    session.connection().exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one() == count
                ), name
    finally:
        database.close()


def submitted_through_a_death(machine: Machine, step: str, victim: str) -> None:
    """Submit while the worker kills the victim at the step, once; start it again; everything is kept."""
    mark = machine.home / "mark"
    machine.start_temporal()
    whom = {"QMTL_TEST_CRASH_PID": str(machine.pids[victim])} if victim != "worker" else {}
    machine.start_worker("tests.e2e.crash", QMTL_TEST_CRASH=step, QMTL_TEST_CRASH_MARK=str(mark), **whom)
    machine.start_gateway()
    prepared(machine)
    with ThreadPoolExecutor(1) as pool:
        submission = pool.submit(Runner.submit, Trend, world="equities", config=machine.config)
        wait_for(lambda: mark.exists() and machine.ended(victim), f"death at {step}")
        {"worker": machine.start_worker, "temporal": machine.start_temporal}[victim]()
        kept(machine, submission.result(120))


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_killed_at_a_step_is_replaced_and_the_submission_goes_on(
    own_machine: Machine, step: str
) -> None:
    submitted_through_a_death(own_machine, step, "worker")


@pytest.mark.parametrize(
    "step", ["before:admit_run", "after:admit_run", "before:request_evaluation", "after:judge"]
)
def test_a_temporal_server_killed_at_a_step_comes_back_and_the_submission_goes_on(
    own_machine: Machine, step: str
) -> None:
    submitted_through_a_death(own_machine, step, "temporal")


@pytest.mark.parametrize("victim", ["worker", "temporal", "gateway"])
def test_what_is_killed_while_a_runner_computes_is_replaced_and_the_result_arrives(
    own_machine: Machine, victim: str
) -> None:
    own_machine.up()
    prepared(own_machine)
    with ThreadPoolExecutor(1) as pool:
        submission = pool.submit(Runner.submit, Slow, world="equities", config=own_machine.config)
        wait_for(lambda: list((own_machine.home / "cache").rglob("*.partial")), "partial output")
        own_machine.kill(victim)
        {
            "worker": own_machine.start_worker,
            "temporal": own_machine.start_temporal,
            "gateway": own_machine.start_gateway,
        }[victim]()
        kept(own_machine, submission.result(120))


@pytest.mark.parametrize("step", ["before:admit", "after:admit"])
def test_a_gateway_killed_between_log_and_answer_is_picked_up_by_the_next(
    own_machine: Machine, step: str
) -> None:
    mark = own_machine.home / "mark"
    own_machine.start_temporal()
    own_machine.start_worker()
    own_machine.start_gateway("tests.e2e.crash_gateway", QMTL_TEST_CRASH=step, QMTL_TEST_CRASH_MARK=str(mark))
    prepared(own_machine)
    with ThreadPoolExecutor(1) as pool:
        submission = pool.submit(Runner.submit, Trend, world="equities", config=own_machine.config)
        wait_for(lambda: mark.exists() and own_machine.ended("gateway"), "death of the Gateway")
        own_machine.start_gateway()
        kept(own_machine, submission.result(120))


def test_what_a_dead_gateway_logged_is_started_by_the_next_even_if_nobody_asks_again(
    own_machine: Machine,
) -> None:
    mark = own_machine.home / "mark"
    own_machine.start_temporal()
    own_machine.start_worker()
    own_machine.start_gateway(
        "tests.e2e.crash_gateway", QMTL_TEST_CRASH="before:admit", QMTL_TEST_CRASH_MARK=str(mark)
    )
    prepared(own_machine)
    runner = start_runner(own_machine, "Trend")
    wait_for(lambda: mark.exists() and own_machine.ended("gateway"), "death of the Gateway")
    runner.kill()
    runner.communicate()
    own_machine.start_gateway()
    with own_machine.client() as client:
        wait_for(lambda: client.gateway_status()["log_waiting"] == 0, "recovery")
    kept(own_machine, Runner.submit(Trend, world="equities", config=own_machine.config))


def test_a_runner_killed_in_mid_compute_is_taken_up_by_the_next_without_computing_again(
    own_machine: Machine,
) -> None:
    own_machine.up()
    prepared(own_machine)
    runner = start_runner(own_machine, "Slow")
    wait_for(lambda: list((own_machine.home / "cache").rglob("*.partial")), "partial output")
    runner.kill()
    runner.communicate()
    result = Runner.submit(Slow, world="equities", config=own_machine.config)
    kept(own_machine, result)
    assert result.nodes.computed == 1


def test_an_interrupted_runner_says_so_and_the_next_submission_goes_on(own_machine: Machine) -> None:
    own_machine.up()
    prepared(own_machine)
    runner = start_runner(own_machine, "Slow")
    wait_for(lambda: list((own_machine.home / "cache").rglob("*.partial")), "partial output")
    runner.send_signal(signal.SIGINT)
    _, said = runner.communicate(timeout=30)
    assert "Stopped at slow, bar" in said
    assert "submit Slow again to continue" in said
    assert "Traceback" not in said
    assert runner.returncode == 130
    kept(own_machine, Runner.submit(Slow, world="equities", config=own_machine.config))


def test_two_runners_of_one_strategy_come_to_one_decision(own_machine: Machine) -> None:
    own_machine.up()
    prepared(own_machine)
    with ThreadPoolExecutor(2) as pool:
        results = list(
            pool.map(
                lambda cache: Runner.submit(
                    Slow(0.001), world="equities", config=own_machine.settings(own_machine.home / cache)
                ),
                ("one", "two"),
            )
        )
    assert len({result.run_id for result in results}) == 1
    kept(own_machine, results[0])


def start_runner(machine: Machine, strategy: str) -> "subprocess.Popen[str]":
    """A runner of its own, by the command, as an author would start it."""
    folder = Path(__file__).parents[1]
    env = {
        **os.environ,
        "QMTL_GATEWAY__URL": machine.url,
        "QMTL_HOME": str(machine.home),
        "PYTHONPATH": str(folder.parent),
    }
    command = [
        sys.executable,
        "-m",
        "api.cli",
        "submit",
        f"{folder / 'support' / 'strategies.py'}:{strategy}",
        "--world",
        "equities",
    ]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_threads_of_a_test_end() -> None:
    """A heartbeat thread that outlives its lease would speak for a runner that is gone."""
    assert not [thread for thread in threading.enumerate() if thread.name == "qmtl-heartbeats"]


def test_a_recovery_beside_its_submission_leaves_it_the_lease(own_machine: Machine) -> None:
    """With one id, the history might hold the request of one and the steps of the other, and not replay."""
    own_machine.start_temporal()
    own_machine.start_gateway()
    prepared(own_machine)
    build = BuiltStrategy(Trend())
    submit = StrategySubmit(
        world_id="equities",
        dag=build.dag,
        node_ids_crc32=build.crc32,
        idempotency_key="submitted-once",
        runner="mine",
        meta=SubmissionMeta(name="trend"),
    )
    database = own_machine.database()
    SqlCommitLog(database).append(submit, "ana")

    async def admitted() -> None:
        client = await connect(own_machine.settings(own_machine.home).temporal, database.store_id)
        other = submit.model_copy(update={"runner": ""})
        recovery = asyncio.create_task(admit(client, database.store_id, 30.0, other, ""))
        handle = client.get_workflow_handle(submission_id("equities", build.dag.strategy_id))
        async with asyncio.timeout(30):
            while not [item async for item in client.list_workflows(f"WorkflowId = '{handle.id}'")]:
                await asyncio.sleep(0.05)
        original = asyncio.create_task(admit(client, database.store_id, 30.0, submit, "ana"))
        await asyncio.to_thread(own_machine.start_worker)
        assert (await recovery).lease is None
        assert (await original).lease is not None
        await Replayer(workflows=[], plugins=[QmtlPlugin()]).replay_workflow(await handle.fetch_history())

    try:
        asyncio.run(admitted())
    finally:
        database.close()
