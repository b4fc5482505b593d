"""The Gateway: one FastAPI application over the stores and Temporal.

`python -m api.gateway` serves it until SIGTERM.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version

import structlog
import uvicorn
from fastapi import Depends, FastAPI
from temporalio.client import Client

from activities import end_loading
from activities.events.bus import BusSettings, open_bus
from activities.settings import Settings, settings
from activities.storage.heartbeats import HeartbeatWriter
from activities.stores import Stores
from api import api_page, problems
from api.acceptance import AsyncAcceptance
from api.acks import GatewayAcks
from api.auth.access import BEARER, check_table
from api.auth.keys import KeyRing
from api.auth.limits import RateLimit, SocketLimit
from api.auth.local_people import write_local_tokens
from api.auth.oidc import IdentityProvider
from api.auth.tokens import Tokens
from api.health import HealthCheck
from api.loops import BackgroundLoops
from api.order_entry import OrderEntry
from api.request_head import BoundedHead
from api.routes import (
    allocations,
    applies,
    audit,
    cancel,
    changes,
    dead_letters,
    events,
    flatten,
    halt,
    leases,
    ledger,
    orders,
    policies,
    principals,
    promotions,
    queues,
    rebalance_schedules,
    rebalancing,
    sessions,
    strategies,
    system,
    tokens,
    worlds,
)
from api.state import GatewayState
from api.stream import Hub
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.data.roots import restrict
from temporal import logs
from temporal.applies import ApplyService
from temporal.client import connect
from temporal.probe import TemporalProbe
from temporal.promotions import PromotionService
from temporal.rebalance_schedules import RebalanceScheduleService
from temporal.rebalancings import RebalancingService
from temporal.shutdown import exit_process
from temporal.submissions import SubmissionService

NOTE_EVERY_S = 2.0
"""Seconds between two notes for the heartbeat that the event loop runs."""
RECOVER_EVERY_S = 15.0
"""Seconds between two searches for what was stored, and not started since Temporal was unreachable."""
TURN_LIMIT_S = 30.0
"""Seconds after which a turn of a loop that only reads or writes a little counts as one that hangs."""
EXPIRE_EVERY_S = 1.0
"""Shortest time, in seconds, between two searches for sessions whose lease has ended; flattens that wait."""
READ_REVOKED_EVERY_S = 1.0
"""Seconds between two reads of the revoked tokens while a stream is open: docs/access.md promises that."""

# Threads for what requests and loops read and write, while the event loop goes on.
_THREADS = 16

ROUTERS = (
    orders.router,  # first: it has most requests, and routes are matched in this order
    strategies.router,
    leases.router,
    worlds.router,
    policies.router,
    applies.router,
    audit.router,
    halt.router,
    cancel.router,
    flatten.router,
    ledger.router,
    allocations.router,
    rebalancing.router,
    rebalance_schedules.router,
    changes.router,
    promotions.router,
    sessions.router,
    queues.router,
    events.router,
    dead_letters.router,
    principals.router,
    tokens.router,
    system.router,
)
MAX_FRAME = 65_536
"""Bytes of a frame that a client may send; hello and refresh are far smaller."""
SHUTDOWN_S = 2
"""Seconds that requests get to finish after SIGTERM."""
_log = structlog.get_logger()


def create_app(config: Settings) -> FastAPI:
    """Build the application. It connects when it starts and closes everything when it stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Of the threads of `asyncio.to_thread`, a few may wait for the fence of one world.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "shared"))
        with _noted_fault(app):
            stores = await asyncio.to_thread(Stores.open, config)
            wanted = config.events
            bus = open_bus(wanted.bus, BusSettings(home=config.home, options=wanted.bus_options))
            acks = GatewayAcks(stores.apply_acks, stores.gateway_leases)
            client = await connect(config.temporal)
            state = gateway_state(config, stores, Hub(bus, acks.add), client)
        app.state.gateway = state
        app.state.tokens = state.tokens
        await asyncio.to_thread(write_local_tokens, state)
        await acks.begin()
        with HeartbeatWriter(stores.database, "gateway") as heartbeat:
            _start_loops(state, acks, heartbeat)
            end_loading()  # a collection of everything took 0.2 s each time
            try:
                yield
            finally:
                bus.close()  # ends the hub's read, for which the process would wait
                await state.loops.stop()
                state.hub.close()
                await acks.end()
        stores.close()

    app = FastAPI(
        title="QMTL Gateway",
        version=version("qmtl"),
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from a public network
        redoc_url=None,
        dependencies=[Depends(BEARER)],
    )
    app.state.limit = RateLimit(config.gateway.rate_per_s)
    app.state.costly_limit = RateLimit(config.gateway.costly_per_s)
    problems.install(app)
    app.add_middleware(
        problems.BodyLimit,
        limit=config.gateway.max_body_bytes,
        artifact_limit=config.gateway.max_artifact_bytes,
    )
    problems.document(app)
    check_table(ROUTERS)
    for router in ROUTERS:
        app.include_router(router)
    api_page.install(app)
    app.router.routes.append(events.stream_route)
    return app


@contextmanager
def _noted_fault(app: FastAPI) -> Iterator[None]:
    """Note why the application cannot start: uvicorn logs a traceback and keeps the error to itself."""
    try:
        yield
    except QmtlError as error:
        app.state.fault = error
        raise


def gateway_state(config: Settings, stores: Stores, hub: Hub, client: Client) -> GatewayState:
    """Build what routes work with, over a client of Temporal."""
    store_id = stores.database.store_id
    keys = KeyRing(config.keys_path)
    loops = BackgroundLoops()
    return GatewayState(
        config=config,
        stores=stores,
        submissions=SubmissionService(
            client, store_id, stores.log, stores.runs, stores.decisions, config.gateway.lease_heartbeat_s
        ),
        applies=ApplyService(client, store_id, stores.apply_requests, stores.approvals, stores.apply_steps),
        promotions=PromotionService(client, store_id, stores.apply_requests),
        rebalancings=RebalancingService(client, store_id, stores.rebalancings),
        rebalance_schedules=RebalanceScheduleService(client, store_id, stores.rebalance_schedules),
        keys=keys,
        tokens=Tokens(keys, stores.tokens, store_id, IdentityProvider(config.auth.oidc)),
        hub=hub,
        sockets=SocketLimit(config.gateway.max_sockets),
        acceptance=AsyncAcceptance(stores.orders.submit),
        loops=loops,
        health=HealthCheck(stores, TemporalProbe(client), loops),
    )


def _start_loops(state: GatewayState, acks: GatewayAcks, heartbeat: HeartbeatWriter) -> None:
    """Start the background loops of a Gateway."""

    async def note_work() -> float:
        heartbeat.worked()
        return NOTE_EVERY_S

    async def expire() -> float:
        sessions = state.stores.sessions
        await asyncio.to_thread(sessions.expire)
        return max(await asyncio.to_thread(sessions.next_expiry_s), EXPIRE_EVERY_S)

    async def continue_flattens() -> float:
        await asyncio.to_thread(state.stores.flattens.continue_due)
        return EXPIRE_EVERY_S

    async def read_revoked() -> float:
        if state.sockets.open:  # only streams look at them
            state.revoked.update(await asyncio.to_thread(state.tokens.revoked))
        return READ_REVOKED_EVERY_S

    async def recover_submissions() -> float:
        count = await state.submissions.recover()
        if count:
            _log.info("started submissions from the commit log", count=count)
        return RECOVER_EVERY_S

    async def recover_applies() -> float:
        await state.applies.recover()
        return RECOVER_EVERY_S

    async def recover_rebalancings() -> float:
        await state.rebalancings.recover()
        return RECOVER_EVERY_S

    async def recover_schedules() -> float:
        await state.rebalance_schedules.recover()
        return RECOVER_EVERY_S

    start = state.loops.start
    start("heartbeat", note_work, TURN_LIMIT_S)
    start("session expiry", expire, TURN_LIMIT_S)
    start("flattens", continue_flattens, TURN_LIMIT_S)
    start("revoked tokens", read_revoked, TURN_LIMIT_S)
    start("Gateway lease", acks.renew, TURN_LIMIT_S)
    start("acknowledgements", acks.acknowledge)
    start("stream", state.hub.turn)
    start("recovery of submissions", recover_submissions)
    start("recovery of applies", recover_applies)
    start("recovery of rebalancings", recover_rebalancings)
    start("recovery of schedules", recover_schedules)


def main() -> None:
    """Serve until SIGTERM; exit with 1 where the Gateway cannot start."""
    code = 0
    logs.configure()
    try:
        config = settings()
        config.require_profile()
        restrict(config.data_roots)
        app = create_app(config)
        uvicorn.run(
            OrderEntry(app, app.state, config.gateway.max_body_bytes),
            host=config.gateway.host,
            port=config.gateway.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=SHUTDOWN_S,
            http=BoundedHead,
            ws="websockets-sansio",
            ws_max_size=MAX_FRAME,
            ws_per_message_deflate=False,
        )
    except QmtlError as error:
        print(f"gateway: {error}", file=sys.stderr, flush=True)
        code = 1
    except SystemExit as error:  # uvicorn raises it where it cannot start
        code = int(error.code or 0) if not isinstance(error.code, str) else 1
        fault = getattr(app.state, "fault", None)
        if fault is not None:
            print(f"gateway: {fault}", file=sys.stderr, flush=True)
    exit_process(code)


if __name__ == "__main__":
    main()
