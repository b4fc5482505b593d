"""The compute lease, and the artifacts that a runner uploads."""

import asyncio

from fastapi import APIRouter, Request, Response

from activities.submissions.evidence import examine
from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, LeaseFailure

router = APIRouter(tags=["compute"], route_class=GuardedRoute)


@router.post(
    "/leases/{lease_id}/heartbeat",
    status_code=204,
    summary="Renew a lease and report progress",
)
async def heartbeat(lease_id: str, body: Heartbeat, state: State, caller: CurrentCaller) -> None:
    caller.require_role((await state.submissions.lease_run(lease_id)).world_id, Role.AUTHOR)
    await state.submissions.heartbeat(lease_id, body)


@router.post(
    "/leases/{lease_id}/complete",
    status_code=204,
    summary="Complete a lease with the content hash of the returns",
)
async def complete(lease_id: str, evidence: EvidenceRef, state: State, caller: CurrentCaller) -> None:
    """Returns that do not match the run are refused here, while the runner can still report it."""
    run = await state.submissions.lease_run(lease_id)
    caller.require_role(run.world_id, Role.AUTHOR)
    dag = await asyncio.to_thread(state.stores.graph.dag, run.strategy_id)
    data = await asyncio.to_thread(state.stores.artifacts.get, evidence.returns_hash)
    await asyncio.to_thread(examine, data, dag, run)
    await state.submissions.complete(lease_id, evidence)


@router.post("/leases/{lease_id}/fail", status_code=204, summary="Give a lease back")
async def fail(lease_id: str, failure: LeaseFailure, state: State, caller: CurrentCaller) -> None:
    """`final`: a retry would fail again, and the submission is rejected. Otherwise it waits for a runner."""
    caller.require_role((await state.submissions.lease_run(lease_id)).world_id, Role.AUTHOR)
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
