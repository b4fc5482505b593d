"""Runs of rebalancings: request, approve, follow and abort them."""

import asyncio
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Query

from activities.rebalancing.requests import SqlRebalancings
from api.auth.access import Caller, CurrentCaller, GuardedRoute
from api.routes.applies import Reason
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.applies import Approval, ApprovalBody
from qmtl_sdk.contracts.rebalance_runs import (
    RebalanceApply,
    RebalanceExecute,
    RebalanceExecution,
    RebalanceStatus,
)
from workflows.ids import rebalancing_id

router = APIRouter(prefix="/rebalancing", tags=["allocations"], route_class=GuardedRoute)


@router.post("/apply", status_code=202, summary="Carry out what a rebalancing request plans")
async def apply(requested: RebalanceApply, state: State, caller: CurrentCaller) -> RebalanceStatus:
    """Idempotent: the same `run_id` with the same body is the same run; another body is refused.

    Needs an operator of all its worlds; where one of them allows live, the live header too. Others approve it
    as the strictest of the worlds asks.
    """
    return await _request(requested, state, caller)


@router.post("/execute", summary="Show the trades of a request, and with `submit` carry them out")
async def execute(requested: RebalanceExecute, state: State, caller: CurrentCaller) -> RebalanceExecution:
    """`submit` needs an operator and the live header, whatever the worlds allow."""
    worlds = [item.world_id for item in requested.request.worlds]
    _require_schema(requested, state)
    for world_id in worlds:
        caller.require_role(world_id, Role.READER)
        if requested.submit:
            caller.require_live(world_id)
    wanted = RebalanceApply.model_validate(requested.model_dump(exclude={"submit"}))
    run = await _request(wanted, state, caller) if requested.submit else None
    if run is None:
        return RebalanceExecution(trades=await asyncio.to_thread(_requests(state).trades, wanted))
    return RebalanceExecution(trades=run.trades, run=run)


@router.get("/runs", summary="List the runs of rebalancings, newest first")
def runs(
    state: State, caller: CurrentCaller, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[RebalanceStatus]:
    """Those of which the caller may read every world, without their plans and trades."""
    found = state.stores.rebalancings.requests.newest(limit, lambda worlds: _may_read(caller, worlds))
    return [_linked(item, state) for item in found]


@router.get("/runs/{run_id}", summary="Show a run: its plan, approvals, trades and report")
async def show(
    run_id: str,
    state: State,
    caller: CurrentCaller,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait until it has ended")] = 0.0,
) -> RebalanceStatus:
    await _require_in_all(run_id, state, caller, Role.READER)
    with state.sockets.held(caller.subject) if wait else nullcontext():
        return _linked(await state.rebalancings.ended(run_id, wait), state)


@router.post("/runs/{run_id}/approve", summary="Approve a rebalancing")
async def approve(
    run_id: str, state: State, caller: CurrentCaller, body: ApprovalBody | None = None
) -> Approval:
    """Nobody approves their own request. Where one of its worlds allows live, it needs the live header."""
    worlds = await _require_approver(run_id, state, caller)
    await asyncio.to_thread(_require_live, state, caller, worlds)
    return await state.rebalancings.record_approval(run_id, caller, "approve", body or ApprovalBody())


@router.post("/runs/{run_id}/reject", summary="Reject a rebalancing: it ends and changes nothing")
async def reject(
    run_id: str, state: State, caller: CurrentCaller, body: ApprovalBody | None = None
) -> Approval:
    await _require_approver(run_id, state, caller)
    return await state.rebalancings.record_approval(run_id, caller, "reject", body or ApprovalBody())


@router.post("/runs/{run_id}/abort", summary="End a rebalancing: what is open is cancelled")
async def abort(
    run_id: str, state: State, caller: CurrentCaller, body: Reason | None = None
) -> RebalanceStatus:
    """At any point. What was filled stays, and so do shares that have changed."""
    await _require_in_all(run_id, state, caller, Role.OPERATOR)
    reason = (body or Reason()).reason
    return _linked(await state.rebalancings.abort(run_id, caller.subject, reason), state)


async def _request(requested: RebalanceApply, state: GatewayState, caller: Caller) -> RebalanceStatus:
    worlds = [item.world_id for item in requested.request.worlds]
    _require_schema(requested, state)
    for world_id in worlds:
        caller.require_role(world_id, Role.OPERATOR)
    await asyncio.to_thread(_require_live, state, caller, worlds)
    return _linked(await state.rebalancings.request(requested, caller), state)


def _require_schema(requested: RebalanceApply, state: GatewayState) -> None:
    if state.config.rebalancing.alpha_metrics_required:
        requested.request.require_alpha_metrics()


def _require_live(state: GatewayState, caller: Caller, worlds: Iterable[str]) -> None:
    for world_id in worlds:
        if state.stores.worlds.world(world_id).spec.allow_live:
            caller.require_live(world_id)


async def _require_in_all(run_id: str, state: GatewayState, caller: Caller, role: Role) -> None:
    found = await asyncio.to_thread(_requests(state).find, run_id, False)
    for world_id in found.worlds:
        caller.require_role(world_id, role)


async def _require_approver(run_id: str, state: GatewayState, caller: Caller) -> tuple[str, ...]:
    found = await asyncio.to_thread(_requests(state).find, run_id, False)
    roles = await asyncio.to_thread(_requests(state).roles, run_id)
    for world_id in found.worlds:
        caller.require_approver(world_id, roles)
    return found.worlds


def _may_read(caller: Caller, worlds: Iterable[str]) -> bool:
    return all(caller.role_in(world_id) for world_id in worlds)


def _requests(state: GatewayState) -> SqlRebalancings:
    return state.stores.rebalancings.requests


def _linked(found: RebalanceStatus, state: GatewayState) -> RebalanceStatus:
    return found.model_copy(update={"workflow_url": state.ui_link(rebalancing_id(found.run_id))})
