"""Applies, approvals, and a world's gate."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from activities.storage.audit import AuditPage
from api.auth.access import Asker, GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, Approval, ApprovalBody, GateStatus
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.worlds import EdgeOverride
from workflows.ids import apply_id

router = APIRouter(prefix="/worlds/{world_id}", tags=["applies"], route_class=GuardedRoute)


class Reason(Model):
    reason: str = Field("", max_length=300)


class Resumed(Model):
    """What was lifted, and the gate as it is now."""

    lifted: list[str]
    gate: GateStatus


@router.post(
    "/apply", status_code=202, summary="Ask for an apply: bring strategies further, or roll one back"
)
async def request_apply(world_id: str, body: ApplyRequest, state: State, caller: Asker) -> ApplyStatus:
    """The same `run_id` with the same body is the same apply. What leads to live needs the live header."""

    def agree(plan: ApplyPlan) -> None:
        if plan.leads_to_live:
            caller.require_live(world_id)

    return _linked(await state.applies.request(world_id, body, caller.subject, agree), state)


@router.post("/apply/plan", summary="What an apply would do; nothing is written")
def plan_apply(world_id: str, body: ApplyRequest, state: State, caller: Asker) -> ApplyPlan:
    return state.stores.apply_requests.plan(world_id, body, caller.subject)


@router.get("/applies", summary="Applies, newest first")
def list_applies(
    world_id: str, state: State, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[ApplyStatus]:
    state.stores.worlds.world(world_id)
    return [_linked(item, state) for item in state.stores.apply_requests.newest(world_id, limit)]


@router.get("/applies/{run_id}", summary="One apply: its plan, approvals, steps, and who has heard")
async def show_apply(
    world_id: str,
    run_id: str,
    state: State,
    wait: Annotated[float, Query(ge=0, le=60, description="seconds to wait for its end")] = 0.0,
) -> ApplyStatus:
    return _linked(await state.applies.ended(world_id, run_id, wait), state)


@router.post("/applies/{run_id}/approve", summary="Agree to an apply")
async def approve(
    world_id: str, run_id: str, state: State, caller: Asker, body: ApprovalBody | None = None
) -> Approval:
    """Nobody agrees to their own request. What leads to live needs the live header."""
    found = await asyncio.to_thread(state.stores.apply_requests.find, world_id, run_id)
    _approver(found.plan, caller)
    if found.plan.leads_to_live:
        caller.require_live(world_id)
    return await state.applies.record_approval(
        world_id, run_id, caller.subject, "approve", body or ApprovalBody()
    )


@router.post("/applies/{run_id}/reject", summary="Say no to an apply: it ends, and nothing has changed")
async def reject(
    world_id: str, run_id: str, state: State, caller: Asker, body: ApprovalBody | None = None
) -> Approval:
    found = await asyncio.to_thread(state.stores.apply_requests.find, world_id, run_id)
    _approver(found.plan, caller)
    return await state.applies.record_approval(
        world_id, run_id, caller.subject, "reject", body or ApprovalBody()
    )


@router.post("/applies/{run_id}/abort", summary="End an apply before it has switched anything")
async def abort(
    world_id: str, run_id: str, state: State, caller: Asker, body: Reason | None = None
) -> ApplyStatus:
    return _linked(
        await state.applies.abort(world_id, run_id, caller.subject, (body or Reason()).reason), state
    )


@router.get("/gate", summary="Whether orders can pass, under which epoch, and why not")
def gate(world_id: str, state: State) -> GateStatus:
    return _gate(state, world_id)


@router.post("/halt", summary="Refuse every order from now on, until someone resumes the world")
def halt(world_id: str, state: State, caller: Asker, body: Reason | None = None) -> GateStatus:
    """Straight in the store: it needs neither Temporal nor anyone who hears of it."""
    state.stores.fence.halt(world_id, caller.subject, (body or Reason()).reason)
    return _gate(state, world_id)


@router.post("/resume", summary="Lift a halt, or open a world that a failed apply has left frozen")
def resume(world_id: str, state: State, caller: Asker, body: Reason | None = None) -> Resumed:
    lifted = state.stores.apply_steps.resume(world_id, caller.subject, (body or Reason()).reason)
    return Resumed(lifted=lifted, gate=_gate(state, world_id))


@router.get("/edges/overrides", summary="Edges of the world's graph that are closed or opened")
def overrides(world_id: str, state: State) -> list[EdgeOverride]:
    return state.stores.edges.overrides(world_id)


@router.post("/edges/overrides", summary="Close or open an edge; the one to live is opened by an apply alone")
def override(world_id: str, body: EdgeOverride, state: State, caller: Asker) -> EdgeOverride:
    return state.stores.fence.override(world_id, body, caller.subject)


@router.get("/audit", summary="Who did what, oldest first")
def audit(
    world_id: str,
    state: State,
    after: Annotated[int, Query(ge=0, lt=2**31)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    verify: bool = False,
) -> AuditPage:
    """`verify`: follow the hash chain from its beginning. A broken one is refused with the place (E_AUDIT_BROKEN)."""
    state.stores.worlds.world(world_id)
    return state.stores.audit.page(world_id, after, limit, verify)


def _approver(plan: ApplyPlan, caller: Asker) -> None:
    """Raises QmtlError (E_APPROVAL_ROLE) where the caller's role in the world is none that the policy lets decide."""
    mine, roles = caller.role_in(plan.world_id), plan.approval.roles
    if mine is None or (mine.value not in roles and not (mine is Role.OWNER and "operator" in roles)):
        raise QmtlError(
            "E_APPROVAL_ROLE",
            f"{caller.subject} is {mine.value if mine else 'nothing'} in {plan.world_id}; its policy lets {' or '.join(roles)} decide",
            "ask someone with that role",
        )


def _gate(state: GatewayState, world_id: str) -> GateStatus:
    found = state.stores.fence.gate(world_id)
    return found.model_copy(
        update={
            "open_orders": state.stores.order_log.open_orders(world_id),
            "orders": state.stores.order_log.counts(world_id),
        }
    )


def _linked(found: ApplyStatus, state: GatewayState) -> ApplyStatus:
    return found.model_copy(update={"workflow_url": state.ui_link(apply_id(found.world_id))})
