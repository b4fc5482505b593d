"""The compute lease and the artifacts that a runner brings back."""

import asyncio

from fastapi import APIRouter, Request, Response

from activities.submissions.evidence import examine
from api.auth.access import Asker, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, LeaseFailure

router = APIRouter(tags=["compute"], route_class=GuardedRoute)


@router.post(
    "/leases/{lease_id}/heartbeat",
    status_code=204,
    summary="Keep the lease, and say how far the computation is",
)
async def heartbeat(lease_id: str, beat: Heartbeat, state: State, caller: Asker) -> None:
    caller.in_world((await state.submissions.lease_run(lease_id)).world_id, Role.AUTHOR)
    await state.submissions.heartbeat(lease_id, beat)


@router.post("/leases/{lease_id}/complete", status_code=204, summary="Hand in the returns by content hash")
async def complete(lease_id: str, evidence: EvidenceRef, state: State, caller: Asker) -> None:
    """Returns that don't fit the run are refused here, while the runner can still say so."""
    run = await state.submissions.lease_run(lease_id)
    caller.in_world(run.world_id, Role.AUTHOR)
    dag = await asyncio.to_thread(state.stores.graph.dag, run.strategy_id)
    data = await asyncio.to_thread(state.stores.artifacts.get, evidence.returns_hash)
    await asyncio.to_thread(examine, data, dag, run)
    await state.submissions.complete(lease_id, evidence)


@router.post("/leases/{lease_id}/fail", status_code=204, summary="Give the lease back")
async def fail(lease_id: str, failure: LeaseFailure, state: State, caller: Asker) -> None:
    """`final` says that computing again would fail again: the submission is then judged as rejected. Otherwise it waits for a runner."""
    caller.in_world((await state.submissions.lease_run(lease_id)).world_id, Role.AUTHOR)
    await state.submissions.fail(lease_id, failure)


@router.put("/artifacts/{content_hash}", status_code=201, summary="Keep bytes under their hash")
async def put_artifact(content_hash: str, request: Request, state: State) -> Response:
    await asyncio.to_thread(state.stores.artifacts.put, content_hash, await request.body())
    return Response(status_code=201)


@router.get(
    "/artifacts/{content_hash}",
    summary="The bytes of a hash",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": {}}}},
)
def get_artifact(content_hash: str, state: State) -> Response:
    return Response(state.stores.artifacts.get(content_hash), media_type="application/octet-stream")
