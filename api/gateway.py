"""The Gateway: one FastAPI application over the stores and Temporal. `python -m api.gateway` serves it until SIGTERM."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version

import structlog
import uvicorn
from fastapi import FastAPI

from api import problems
from api.routes import leases, strategies, system, worlds
from api.state import GatewayState
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import Settings, settings
from temporal import logs
from temporal.client import connect
from temporal.shutdown import leave
from temporal.submissions import Submissions
from temporal.worker import Stores

RECOVER_EVERY_S = 15.0
_log = structlog.get_logger()


def create_app(config: Settings) -> FastAPI:
    """The application. It connects when it starts and closes everything when it ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        stores = await asyncio.to_thread(Stores.open, config)
        client = await connect(config.temporal)
        submissions = Submissions(client, stores.database.store_id, stores.log, stores.worlds, config.gateway.lease_heartbeat_s)
        app.state.gateway = GatewayState(config, stores, submissions)
        recovery = asyncio.create_task(_recover(submissions))
        try:
            yield
        finally:
            recovery.cancel()
            with suppress(asyncio.CancelledError):
                await recovery
            stores.database.close()

    app = FastAPI(title="QMTL Gateway", version=version("qmtl"), lifespan=lifespan, responses={"default": {"model": problems.Problem, "description": "what went wrong"}})
    problems.install(app)
    app.add_middleware(problems.BodyLimit, limit=config.gateway.max_body_bytes, artifact_limit=config.gateway.max_artifact_bytes)
    for part in (strategies, leases, worlds, system):
        app.include_router(part.router)
    return app


async def _recover(submissions: Submissions) -> None:
    """Pick up what an earlier Gateway logged and did not start; and again now and then, for what a time without Temporal left behind."""
    while True:
        try:
            count = await submissions.recover()
            if count:
                _log.info("picked up submissions from the log", count=count)
        except QmtlError as error:
            _log.warning("the log can't be worked off now", why=str(error))
        await asyncio.sleep(RECOVER_EVERY_S)


def main() -> None:
    code = 0
    logs.configure()
    try:
        config = settings()
        config.require_profile()
        uvicorn.run(create_app(config), host=config.gateway.host, port=config.gateway.port, log_level="warning", access_log=False, timeout_graceful_shutdown=5)
    except QmtlError as error:
        print(f"gateway: {error}", file=sys.stderr, flush=True)
        code = 1
    except SystemExit as error:  # what uvicorn raises when it can't start
        code = int(error.code or 0) if not isinstance(error.code, str) else 1
    leave(code)


if __name__ == "__main__":
    main()
