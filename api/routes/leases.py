"""The compute lease, and the artifacts that a runner uploads."""

import asyncio

from fastapi import APIRouter, Request, Response

from activities.fence.cache_hits import CacheHits
from activities.messages.submission import RunContextBody
from activities.submissions.evidence import examine
from api.auth.access import Caller, CurrentCaller, GuardedRoute
from api.routes.own_nodes import require_own_nodes
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, LeaseFailure

router = APIRouter(tags=["compute"], route_class=GuardedRoute)


@router.post(
    "/leases/{lease_id}/heartbeat",
    status_code=204,
    summary="Renew a lease and report progress",
)
async def heartbeat(lease_id: str, body: Heartbeat, state: State, caller: CurrentCaller) -> None:
    await _held_run(lease_id, state, caller)
    await state.submissions.heartbeat(lease_id, body)


@router.post(
    "/leases/{lease_id}/complete",
    status_code=204,
    summary="Complete a lease with the content hash of the returns",
)
async def complete(lease_id: str, evidence: EvidenceRef, state: State, caller: CurrentCaller) -> None:
    """Returns that do not match the run are refused here, while the runner can still report it."""
    run = await _held_run(lease_id, state, caller)
    dag = await asyncio.to_thread(state.stores.graph.dag, run.strategy_id)
    data = await asyncio.to_thread(state.stores.artifacts.get, evidence.returns_hash)
    await asyncio.to_thread(examine, data, dag, run)
    if evidence.cross_context_hits:
        await asyncio.to_thread(require_own_nodes, state.stores, run.strategy_id, evidence.cross_context_hits)
        hits = CacheHits(run.run_id, run.world_id, run.strategy_id, evidence.cross_context_hits)
        await asyncio.to_thread(state.stores.cache_hits.count, hits, caller.subject)
    await state.submissions.complete(lease_id, evidence)


@router.post("/leases/{lease_id}/fail", status_code=204, summary="Give a lease back")
async def fail(lease_id: str, failure: LeaseFailure, state: State, caller: CurrentCaller) -> None:
    """`final`: a retry would fail again, and the submission is rejected. Otherwise it waits for a runner."""
    await _held_run(lease_id, state, caller)
    await state.submissions.fail(lease_id, failure)


@router.put("/artifacts/{content_hash}", status_code=201, summary="Store bytes under their content hash")
async def put_artifact(content_hash: str, request: Request, state: State) -> Response:
    await asyncio.to_thread(state.stores.artifacts.put, content_hash, await request.body())
    return Response(status_code=201)


@router.get(
    "/artifacts/{content_hash}",
    summary="Get the bytes of a content hash",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def get_artifact(content_hash: str, state: State) -> Response:
    return Response(state.stores.artifacts.get(content_hash), media_type="application/octet-stream")


async def _held_run(lease_id: str, state: GatewayState, caller: Caller) -> RunContextBody:
    """Return the run of a lease that was granted to the caller.

    Raises QmtlError: E_LEASE_UNKNOWN, E_WORLD_FORBIDDEN, E_ROLE, E_LEASE_HOLDER.
    """
    run = await state.submissions.lease_run(lease_id)
    caller.require_role(run.world_id, Role.AUTHOR)
    log = state.stores.log
    await asyncio.to_thread(log.require_lease_holder, run.run_id, lease_id, caller.subject)
    return run
