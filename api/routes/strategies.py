"""Submissions: check, submit, and read their status."""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Body, Query
from fastapi.openapi.models import Example

from activities.messages.submission import RunContextBody
from activities.submissions.context import ComputeContextService, asks_for_shadow
from api.auth.access import Caller, CurrentCaller, GuardedRoute
from api.metrics import DIFF_MS
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.submission import DryRun, StrategyStatus, StrategySubmit, SubmissionAck
from workflows.ids import submission_id_of

router = APIRouter(prefix="/strategies", tags=["strategies"], route_class=GuardedRoute)
_EXAMPLE: dict[str, Example] = {
    "a price stream": {
        "value": {
            "world_id": "demo",
            "idempotency_key": "7b6f1d0e-first-try",
            "node_ids_crc32": 704157017,
            "runner": "laptop",
            "dag": {
                "nodes": [
                    {
                        "node_id": "blake3:…",
                        "node_type": "StreamInput",
                        "interval": 86400,
                        "period": 30,
                        "params": {"tags": ["AAPL", "price"]},
                    }
                ]
            },
            "meta": {"name": "First"},
        }
    }
}
Submission = Annotated[StrategySubmit, Body(openapi_examples=_EXAMPLE)]


@router.post("", status_code=202, summary="Submit a strategy to a world")
async def submit(submission: Submission, state: State, caller: CurrentCaller) -> SubmissionAck:
    """Check the DAG, append it to the commit log, start or join its workflow; return what to compute."""
    began = time.perf_counter()
    await asyncio.to_thread(_checked, submission, state, caller)
    ack = await state.submissions.submit(submission, caller.subject)
    DIFF_MS.observe((time.perf_counter() - began) * 1000)
    return ack


@router.post("/dry-run", summary="Show what a submission would do; nothing is written")
def dry_run(submission: Submission, state: State, caller: CurrentCaller) -> DryRun:
    run = _checked(submission, state, caller)
    plan = state.stores.graph.plan(submission.world_id, run.context.execution_domain.value, submission.dag)
    return DryRun(
        strategy_id=run.strategy_id,
        nodes_new=plan.new,
        nodes_reused=plan.reused,
        topics=plan.topics,
        context=run.context,
        bindings=run.bindings,
    )


@router.get("/{strategy_id}/status", summary="Show a submission's progress and outcome")
async def status(
    strategy_id: str,
    state: State,
    caller: CurrentCaller,
    world_id: Annotated[
        str | None, Query(description="the world; without it, the newest run in any world")
    ] = None,
    run_id: Annotated[str | None, Query(description="one run; without it, the newest")] = None,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait for the outcome")] = 0.0,
) -> StrategyStatus:
    runs = state.stores.runs
    run = (
        await asyncio.to_thread(runs.run, run_id)
        if run_id
        else await asyncio.to_thread(runs.newest_run, strategy_id, world_id)
    )
    if run is None or run.strategy_id != strategy_id:
        raise QmtlError(
            "E_STRATEGY_UNKNOWN",
            f"{strategy_id[:80]} was not submitted{f' to {world_id}' if world_id else ''}",
            "submit it with POST /strategies",
        )
    caller.require_role(run.world_id, Role.READER)
    outcome = await state.submissions.outcome(run, wait)
    progress = None if outcome else await state.submissions.progress(run)
    workflow = submission_id_of(run)
    return StrategyStatus(
        world_id=run.world_id,
        strategy_id=run.strategy_id,
        name=run.name,
        workflow_id=workflow,
        run_id=run.run_id,
        ui_url=state.ui_link(workflow),
        state=outcome.status if outcome else "running",
        step=progress.step if progress else "",
        needs_runner=progress is not None and progress.needs_runner,
        outcome=outcome,
        allocation=await asyncio.to_thread(
            state.stores.allocations.strategy_capital, run.world_id, run.strategy_id
        )
        if outcome
        else None,
    )


def _checked(submission: StrategySubmit, state: GatewayState, caller: Caller) -> RunContextBody:
    """Check everything that can be refused before the submission is logged. Raises QmtlError."""
    caller.require_role(submission.world_id, Role.AUTHOR)
    if asks_for_shadow(submission) and not caller.may(Role.OPERATOR, submission.world_id):
        raise QmtlError(
            "E_SHADOW",
            "only an operator may submit to the shadow domain",
            "submit without the hint, or ask an operator",
        )
    submission.dag.lint()
    submission.dag.verify(submission.node_ids_crc32)
    return ComputeContextService(state.stores.context_sources).run("dry-run", submission)
