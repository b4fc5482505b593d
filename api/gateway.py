"""The Gateway: one FastAPI application over the stores and Temporal. `python -m api.gateway` serves it until SIGTERM."""

import asyncio
import gc
import getpass
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
import uvicorn
from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from activities.events.bus import BusSettings, open_bus
from activities.stores import Stores
from api import problems
from api.acks import GatewayAcks
from api.auth.access import check_table
from api.auth.keys import KeyRing, write_secret
from api.auth.limits import RateLimit, SocketLimit
from api.auth.tokens import Tokens
from api.routes import (
    applies,
    events,
    leases,
    orders,
    policies,
    promotions,
    queues,
    sessions,
    strategies,
    system,
    tokens,
    worlds,
)
from api.state import GatewayState
from api.stream import Hub, watch_revoked
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import Settings, settings
from temporal import logs
from temporal.applies import ApplyService
from temporal.client import connect
from temporal.promotions import PromotionService
from temporal.shutdown import exit_process
from temporal.submissions import SubmissionService

RECOVER_EVERY_S, EXPIRE_EVERY_S = 15.0, 1.0
ROUTERS = (
    orders.router,  # asked most, and routes are looked through in this order
    strategies.router,
    leases.router,
    worlds.router,
    policies.router,
    applies.router,
    promotions.router,
    sessions.router,
    queues.router,
    events.router,
    tokens.router,
    system.router,
)
MAX_FRAME = 65_536
DEMO_PEOPLE = ("ana", "ben")
_log = structlog.get_logger()


def create_app(config: Settings) -> FastAPI:
    """The application. It connects when it starts and closes everything when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stores = await asyncio.to_thread(Stores.open, config)
        client = await connect(config.temporal)
        submissions = SubmissionService(
            client,
            stores.database.store_id,
            stores.log,
            stores.runs,
            stores.decisions,
            config.gateway.lease_heartbeat_s,
        )
        keys, bus = (
            KeyRing(config.keys_path),
            open_bus(config.events.bus, BusSettings(home=config.home, options=config.events.bus_options)),
        )
        applied, acknowledged = (
            ApplyService(client, stores.database.store_id, stores.apply_requests, stores.approvals),
            GatewayAcks(stores.apply_acks, stores.gateway_leases),
        )
        promoted = PromotionService(client, stores.database.store_id, stores.apply_requests)
        tokens = Tokens(keys, stores.tokens, stores.database.store_id)
        state = GatewayState(
            config,
            stores,
            submissions,
            applied,
            promoted,
            keys,
            tokens,
            Hub(bus, acknowledged.hear),
            SocketLimit(config.gateway.max_sockets),
        )
        app.state.gateway, app.state.tokens = state, state.tokens
        await asyncio.to_thread(_leave_local_tokens, state)
        await acknowledged.begin()
        loops = [
            _recover(state),
            state.hub.run(),
            watch_revoked(state.tokens, state.revoked),
            _expire_sessions(state),
            acknowledged.run(),
        ]
        tasks = [asyncio.create_task(loop) for loop in loops]
        gc.collect()
        gc.freeze()  # what is here now stays: looking through it for garbage held all requests up, a fifth of a second each time
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await acknowledged.end()
            bus.close()
            stores.close()

    app = FastAPI(
        title="QMTL Gateway",
        version=version("qmtl"),
        lifespan=lifespan,
        dependencies=[
            Depends(
                HTTPBearer(
                    auto_error=False, scheme_name="token", description="a token of `qmtl token create`"
                )
            )
        ],
    )
    app.state.limit = RateLimit(config.gateway.rate_per_s)
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
    app.router.routes.append(events.stream_route)
    return app


def _leave_local_tokens(state: GatewayState) -> None:
    """A token for the person who starts this, in a file that only they can read. `owner` is for the keys and for what operators may not take back.

    A stack of one's own has two more people, so that what takes two can be tried (`--as ana`); where the profile is `prod`, people have tokens of their own.
    """
    people = {"operator": (getpass.getuser(), Role.OPERATOR), "owner": (getpass.getuser(), Role.OWNER)}
    if state.config.profile == "dev":
        people |= {name: (name, Role.OPERATOR) for name in DEMO_PEOPLE}
    for name, (subject, role) in people.items():
        path = state.config.local_token_path(name)
        fresh = state.tokens.local(role, subject, path.read_text().strip() if path.exists() else None)
        if fresh is not None:
            write_secret(path, fresh)


async def _expire_sessions(state: GatewayState) -> None:
    """End the sessions whose lease has ended."""
    while True:
        try:
            await asyncio.to_thread(state.stores.sessions.expire)
        except QmtlError as error:
            _log.warning("sessions can't be looked at now", why=str(error))
        await asyncio.sleep(EXPIRE_EVERY_S)


async def _recover(state: GatewayState) -> None:
    """Pick up what an earlier Gateway kept and did not start; and again now and then, for what a time without Temporal left behind."""
    while True:
        try:
            count = await state.submissions.recover()
            if count:
                _log.info("picked up submissions from the log", count=count)
            await state.applies.recover()
        except QmtlError as error:
            _log.warning("the log can't be worked off now", why=str(error))
        await asyncio.sleep(RECOVER_EVERY_S)


def main() -> None:
    code = 0
    logs.configure()
    try:
        config = settings()
        config.require_profile()
        uvicorn.run(
            create_app(config),
            host=config.gateway.host,
            port=config.gateway.port,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            ws="websockets-sansio",
            ws_max_size=MAX_FRAME,
            ws_per_message_deflate=False,
        )
    except QmtlError as error:
        print(f"gateway: {error}", file=sys.stderr, flush=True)
        code = 1
    except SystemExit as error:  # what uvicorn raises when it can't start
        code = int(error.code or 0) if not isinstance(error.code, str) else 1
    exit_process(code)


if __name__ == "__main__":
    main()
