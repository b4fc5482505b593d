"""Health, status and metrics of the Gateway."""

import asyncio
from collections import defaultdict
from importlib.metadata import version
from typing import Literal

from fastapi import APIRouter, Response

from api.auth.access import GuardedRoute
from api.metrics import (
    CROSS_CONTEXT_HITS,
    DEAD_LETTERS,
    OUTBOX_AGE,
    SESSION_LAG,
    SESSIONS,
    SOCKETS,
    exposition,
)
from api.state import State
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model

router = APIRouter(tags=["system"], route_class=GuardedRoute)


class Health(Model):
    """`ok`: submissions can be processed. `degraded`: a part is missing; the fields show which.

    `dead_letters`: events that could not be published; everything else goes on without them.
    """

    status: Literal["ok", "degraded"]
    database: bool
    temporal: bool
    workers: int
    dead_letters: int


class GatewayStatus(Model):
    """What this Gateway serves. `log_waiting`: submissions in the commit log that have not been processed."""

    version: str
    profile: str
    store_id: str
    worlds: int
    log_waiting: int
    temporal_address: str
    temporal_namespace: str
    temporal_ui: str


@router.get("/health", summary="Check whether submissions can be processed")
async def health(state: State, response: Response) -> Health:
    database = True
    temporal = True
    workers = 0
    dead_letters = 0
    try:
        await asyncio.to_thread(state.stores.log.waiting)
        dead_letters = await asyncio.to_thread(state.stores.dead_letters.count)
    except QmtlError:
        database = False
    try:
        workers = await state.submissions.workers()
    except QmtlError:
        temporal = False
    good = database and temporal and workers > 0
    response.status_code = 200 if good else 503
    return Health(
        status="ok" if good else "degraded",
        database=database,
        temporal=temporal,
        workers=workers,
        dead_letters=dead_letters,
    )


@router.get("/status", summary="Show what this Gateway serves")
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


@router.get(
    "/metrics",
    summary="Get metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(state: State) -> Response:
    DEAD_LETTERS.set(state.stores.dead_letters.count())
    OUTBOX_AGE.set(state.stores.outbox.age_s())
    SOCKETS.set(state.sockets.open)
    for gauge in (SESSIONS, SESSION_LAG, CROSS_CONTEXT_HITS):
        gauge.clear()
    lags: defaultdict[str, float] = defaultdict(float)
    for item in state.stores.sessions.all(None):
        SESSIONS.labels(item.world_id, item.execution_domain).inc()
        lags[item.world_id] = max(lags[item.world_id], item.report.lag_s)
        CROSS_CONTEXT_HITS.labels(item.world_id).inc(item.report.cross_context_cache_hits)
    for world_id, lag in lags.items():
        SESSION_LAG.labels(world_id).set(lag)
    return Response(exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
