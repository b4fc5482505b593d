"""Health, status and metrics of the Gateway."""

import asyncio
from collections import defaultdict
from importlib.metadata import version

from fastapi import APIRouter, Response

from activities.graph.sentinels import sentinel_gaps
from api.auth.access import GuardedRoute
from api.health import Health
from api.metrics import (
    CROSS_CONTEXT_HITS,
    DEAD_LETTERS,
    NODE_CACHE,
    OUTBOX_AGE,
    SENTINEL_GAPS,
    SESSION_LAG,
    SESSIONS,
    SOCKETS,
    TO_ACTIVATION,
    exposition,
)
from api.state import State
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.processes import ProcessStatus

# Dead letters that the metric counts at most.
_MOST_LETTERS = 100_000

# Submissions over which their time to the activation is measured.
_MEASURED = 100
_QUANTILES = (0.5, 0.95)

router = APIRouter(tags=["system"], route_class=GuardedRoute)


class GatewayStatus(Model):
    """What this Gateway serves, the processes beside it, and the text of each fault of `/health`."""

    version: str
    profile: str
    store_id: str
    worlds: int
    log_waiting: int
    processes: tuple[ProcessStatus, ...]
    faults: dict[str, str]
    temporal_address: str
    temporal_namespace: str
    temporal_ui: str


@router.get(
    "/health",
    summary="Check what works, and what that means for orders",
    responses={503: {"model": Health, "description": "the database does not answer"}},
)
async def health(state: State, response: Response) -> Health:
    found = (await state.health.measure()).health
    response.status_code = 200 if found.database else 503
    return found


@router.get("/status", summary="Show what this Gateway serves, and which processes run")
async def status(state: State) -> GatewayStatus:
    temporal = state.config.temporal
    found = await state.health.measure()
    return GatewayStatus(
        version=version("qmtl"),
        profile=state.config.profile,
        store_id=state.stores.database.store_id,
        worlds=len(await asyncio.to_thread(state.stores.worlds.worlds)),
        log_waiting=found.health.log_waiting,
        processes=found.processes,
        faults=found.faults,
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
    DEAD_LETTERS.set(state.stores.dead_letters.count(_MOST_LETTERS))
    OUTBOX_AGE.set(state.stores.outbox.age_s())
    SOCKETS.set(state.sockets.open)
    SENTINEL_GAPS.set(sentinel_gaps(state.stores.database))
    for gauge in (SESSIONS, SESSION_LAG, CROSS_CONTEXT_HITS, NODE_CACHE, TO_ACTIVATION):
        gauge.clear()
    lags: defaultdict[str, float] = defaultdict(float)
    hits = state.stores.cache_hits.counts()
    for item in state.stores.sessions.all(None):
        SESSIONS.labels(item.world_id, item.execution_domain).inc()
        lags[item.world_id] = max(lags[item.world_id], item.report.lag_s)
        NODE_CACHE.labels(item.world_id).inc(item.report.resident_bytes)
        hits.setdefault(item.world_id, 0)  # a world in which a strategy runs shows its 0
    for world_id, count in hits.items():
        CROSS_CONTEXT_HITS.labels(world_id).set(count)
    for world_id, lag in lags.items():
        SESSION_LAG.labels(world_id).set(lag)
    took = sorted(state.stores.runs.seconds_to_activation(_MEASURED))
    for quantile in _QUANTILES if took else ():
        TO_ACTIVATION.labels(str(quantile)).set(took[int(quantile * (len(took) - 1))])
    return Response(exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")
