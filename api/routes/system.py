"""Whether the Gateway works, and with what."""

import asyncio
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Response

from api.state import State
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model

router = APIRouter(tags=["system"])


class Health(Model):
    """`ok` when submissions can go all the way; `degraded` names what is missing."""

    status: Literal["ok", "degraded"]
    database: bool
    temporal: bool
    workers: int


class GatewayStatus(Model):
    version: str
    profile: str
    store_id: str
    worlds: int
    log_waiting: int
    temporal_address: str
    temporal_namespace: str
    temporal_ui: str


@router.get("/health", summary="Whether submissions can go all the way")
async def health(state: State, response: Response) -> Health:
    database, workers, temporal = True, 0, True
    try:
        await asyncio.to_thread(state.stores.log.waiting)
    except QmtlError:
        database = False
    try:
        workers = await state.submissions.workers()
    except QmtlError:
        temporal = False
    good = database and temporal and workers > 0
    response.status_code = 200 if good else 503
    return Health(status="ok" if good else "degraded", database=database, temporal=temporal, workers=workers)


@router.get("/status", summary="What this Gateway serves")
def status(state: State) -> GatewayStatus:
    temporal = state.config.temporal
    return GatewayStatus(
        version=version("qmtl"),
        profile=state.config.profile,
        store_id=state.stores.database.store_id,
        worlds=len(state.stores.worlds.worlds()),
        log_waiting=len(state.stores.log.waiting()),
        temporal_address=temporal.address or "",
        temporal_namespace=temporal.namespace,
        temporal_ui=temporal.ui_url or "",
    )
