"""Applies, approvals, and a world's fence."""

import asyncio
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody, FenceStatus
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.flattening import FlattenId, FlattenRequest
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.texts import Report
from workflows.ids import apply_id

router = APIRouter(prefix="/worlds/{world_id}", tags=["applies"], route_class=GuardedRoute)


class Reason(Model):
    """Why someone does what the request asks for; stored in the audit trail."""

    reason: Report = Field("", max_length=MAX_REASON)


class StrategyBody(Reason):
    """Which strategy of the world to halt or resume; none: the whole world."""

    strategy: str | None = Field(
        None, min_length=1, max_length=128, description="its name, its strategy_id, or the beginning of that"
    )


class HaltBody(StrategyBody):
    """What to halt. `flatten`: close what is held too, as a request to flatten of this id."""

    flatten: FlattenId | None = None


class Resumed(Model):
    """What was lifted, and the fence as it is now."""

    lifted: list[str]
    fence: FenceStatus


@router.post(
    "/apply", status_code=202, summary="Request an apply: move strategies to another stage, or roll one back"
)
async def request_apply(
    world_id: str, body: ApplyRequest, state: State, caller: CurrentCaller
) -> ApplyStatus:
    """Idempotent: the same `run_id` with the same body is the same apply. Live needs the live header."""

    def require_live(plan: ApplyPlan) -> None:
        if plan.leads_to_live:
            caller.require_live(world_id)

    return _linked(await state.applies.request(world_id, body, caller, require_live), state)


@router.post("/apply/plan", summary="Plan an apply without requesting it; nothing is written")
def plan_apply(world_id: str, body: ApplyRequest, state: State, caller: CurrentCaller) -> ApplyPlan:
    return state.stores.apply_requests.plan(world_id, body, caller.subject)


@router.get("/applies", summary="List applies, newest first")
def list_applies(
    world_id: str, state: State, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[ApplyStatus]:
    state.stores.worlds.world(world_id)
    return [_linked(item, state) for item in state.stores.apply_requests.newest(world_id, limit)]


@router.get("/applies/{run_id}", summary="Show an apply: its plan, approvals, steps and acknowledgements")
async def show_apply(
    world_id: str,
    run_id: str,
    state: State,
    caller: CurrentCaller,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait until it has ended")] = 0.0,
) -> ApplyStatus:
    with state.sockets.held(caller.subject) if wait else nullcontext():
        return _linked(await state.applies.ended(world_id, run_id, wait), state)


@router.post("/applies/{run_id}/approve", summary="Approve an apply")
async def approve(
    world_id: str, run_id: str, state: State, caller: CurrentCaller, body: ApprovalBody | None = None
) -> Approval:
    """Nobody approves their own request. What leads to live needs the live header."""
    found = await asyncio.to_thread(state.stores.apply_requests.find, world_id, run_id)
    caller.require_approver(world_id, found.plan.approval.roles)
    if found.plan.leads_to_live:
        caller.require_live(world_id)
    return await state.applies.record_approval(world_id, run_id, caller, "approve", body or ApprovalBody())


@router.post("/applies/{run_id}/reject", summary="Reject an apply: it ends and changes nothing")
async def reject(
    world_id: str, run_id: str, state: State, caller: CurrentCaller, body: ApprovalBody | None = None
) -> Approval:
    found = await asyncio.to_thread(state.stores.apply_requests.find, world_id, run_id)
    caller.require_approver(world_id, found.plan.approval.roles)
    return await state.applies.record_approval(world_id, run_id, caller, "reject", body or ApprovalBody())


@router.post("/applies/{run_id}/abort", summary="End an apply before it switches anything")
async def abort(
    world_id: str, run_id: str, state: State, caller: CurrentCaller, body: Reason | None = None
) -> ApplyStatus:
    return _linked(
        await state.applies.abort(world_id, run_id, caller.subject, (body or Reason()).reason), state
    )


@router.get("/fence", summary="Show whether orders can pass, under which epoch, and what stops them")
def fence(world_id: str, state: State) -> FenceStatus:
    scales = state.stores.allocations.scales(world_id)
    found = {"scale": scales.text, "scale_factor": str(scales.world.value)}
    return _fence(state, world_id).model_copy(update=found)


@router.post("/halt", summary="Halt a world or one of its strategies: refuse every order until a resume")
async def halt(
    world_id: str, state: State, caller: CurrentCaller, body: HaltBody | None = None
) -> FenceStatus:
    """Acts in the store: it needs neither Temporal nor a subscriber."""
    wanted = body or HaltBody()

    def act() -> FenceStatus:
        if wanted.strategy is None:
            state.stores.fence.halt(world_id, caller.subject, wanted.reason)
        else:
            state.stores.strategy_halts.halt(world_id, wanted.strategy, caller.subject, wanted.reason)
        if wanted.flatten is not None:
            request = FlattenRequest(
                flatten_id=wanted.flatten, strategy=wanted.strategy, reason=wanted.reason
            )
            state.stores.flattens.request(world_id, request, caller.subject)
        return _fence(state, world_id)

    return await state.run_halt(act)


@router.post("/resume", summary="Lift a halt, or open a world that a failed apply left frozen")
def resume(world_id: str, state: State, caller: CurrentCaller, body: StrategyBody | None = None) -> Resumed:
    """A world's halt and those of its strategies are lifted separately."""
    wanted = body or StrategyBody()
    if wanted.strategy is None:
        lifted = state.stores.apply_steps.resume(world_id, caller.subject, wanted.reason)
    else:
        found = state.stores.strategy_halts.resume(world_id, wanted.strategy, caller.subject, wanted.reason)
        lifted = [f"halt of {found.text}"]
    return Resumed(lifted=lifted, fence=_fence(state, world_id))


@router.get("/edges/overrides", summary="List the edges that are closed or opened by hand")
def overrides(world_id: str, state: State) -> list[EdgeOverride]:
    return state.stores.edges.overrides(world_id)


@router.post("/edges/overrides", summary="Close the edge from backtest to live; only an apply opens it")
def override(world_id: str, body: EdgeOverride, state: State, caller: CurrentCaller) -> EdgeOverride:
    return state.stores.fence.override(world_id, body, caller.subject)


def _fence(state: GatewayState, world_id: str) -> FenceStatus:
    found = state.stores.fence.status(world_id)
    return found.model_copy(
        update={
            "open_orders": state.stores.order_log.open_orders(world_id),
            "flattening": state.stores.flattens.under_way(world_id),
            "unflattened": state.stores.flattens.left_behind(world_id),
            "orders": state.stores.order_log.counts(world_id),
        }
    )


def _linked(found: ApplyStatus, state: GatewayState) -> ApplyStatus:
    return found.model_copy(update={"workflow_url": state.ui_link(apply_id(found.world_id))})
