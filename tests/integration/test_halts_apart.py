"""A halt passes whatever other requests, callers and transactions have used up."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.allocation.store import SqlAllocations
from activities.fence.acceptance import OrderAcceptance
from activities.fence.flattens import SqlFlattens
from activities.fence.order_log import SqlOrderLog
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.storage.database import Database
from api import problems
from api.auth.keys import KeyRing
from api.auth.limits import RateLimit
from api.auth.tokens import Tokens
from api.routes import applies, audit
from api.state import GatewayState
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role, TokenRequest
from tests.support.desk import Desk
from tests.support.trail import audit_trail

THREADS = 40
"""Requests to plain functions that FastAPI serves at the same time."""


def test_halts_and_orders_pass_where_every_connection_is_in_use(database: Database) -> None:
    desk = Desk(database)
    desk.apply("dryrun")
    order = desk.order(desk.session(), desk.epoch)
    pool: Any = database._engine.pool
    pool._timeout = 0.2
    with ExitStack() as held:
        for _ in range(pool.size() + pool._max_overflow):
            session = held.enter_context(database.read())
            session.connection().exec_driver_sql("SELECT 1")
        with pytest.raises(QmtlError, match="every connection to the database is in use"):
            desk.fence.status(desk.world)
        assert OrderAcceptance(database).publish([order], desk.caller)[0].accepted
        with database.reserved():
            desk.fence.halt(desk.world, "olga", "stop")
    assert desk.fence_row().halted


class Gateway:
    """The routes of a world over a real store, for callers with real tokens."""

    def __init__(self, database: Database, home: Path, per_s: float) -> None:
        self.desk = Desk(database)
        self.tokens = Tokens(KeyRing(home / "keys.json"), SqlTokenStore(database), database.store_id)
        SqlPrincipalStore(database).add("olga", "x")
        self.token = self.tokens.issue(TokenRequest(subject="olga", grants={"*": Role.OPERATOR}), "x").token
        self.app = FastAPI()
        problems.install(self.app)
        self.app.include_router(applies.router)
        self.app.include_router(audit.router)
        self.app.state.tokens = self.tokens
        self.app.state.limit = RateLimit(per_s)
        stores = SimpleNamespace(
            database=database,
            fence=self.desk.fence,
            flattens=SqlFlattens(database, DEFAULT_ACCOUNTS, 20.0),
            order_log=SqlOrderLog(database),
            allocations=SqlAllocations(database),
            audit=audit_trail(database),
            worlds=SimpleNamespace(world=lambda _: None),
        )
        state = SimpleNamespace(stores=stores, _halting=ThreadPoolExecutor(2))
        state.run_halt = MethodType(GatewayState.run_halt, state)
        self.app.state.gateway = state

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"authorization": f"Bearer {self.token}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            yield client


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_a_halt_needs_none_of_the_threads_of_other_requests(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader of another world who sent 45 slow requests delayed a halt by 20 s."""
    gateway, go = Gateway(database, tmp_path, 10_000), threading.Event()
    monkeypatch.setattr(gateway.desk.fence, "override", lambda _, body, __: (go.wait(60), body)[1])
    edge = {"src": "domain:backtest", "dst": "domain:live", "active": True, "reason": "r"}

    async def run() -> None:
        async with gateway.http() as client:
            slow = [
                asyncio.create_task(client.post("/worlds/w/edges/overrides", json=edge))
                for _ in range(THREADS + 5)
            ]
            try:
                await asyncio.sleep(0)
                answer = await asyncio.wait_for(client.post("/worlds/w/halt", json={"reason": "stop"}), 20)
                assert answer.status_code == 200, answer.text
                assert not any(task.done() for task in slow)
            finally:
                go.set()
                await asyncio.gather(*slow, return_exceptions=True)

    asyncio.run(run())
    assert gateway.desk.fence_row().halted


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_a_halt_has_a_rate_of_its_own(database: Database, tmp_path: Path) -> None:
    """An operator's strategies send under the operator's name where one person has both."""
    gateway = Gateway(database, tmp_path, 0.5)

    async def run() -> None:
        async with gateway.http() as client:
            codes = [(await client.get("/worlds/w/fence")).status_code for _ in range(3)]
            assert codes[-1] == 429
            assert (await client.post("/worlds/w/halt", json={})).status_code == 200
            assert (await client.post("/worlds/w/halt", json={})).status_code == 429, "it has a limit too"

    asyncio.run(run())


@pytest.mark.parametrize("dsn", ["sqlite"], indirect=True)
def test_one_audit_trail_is_verified_at_a_time(database: Database, tmp_path: Path) -> None:
    gateway = Gateway(database, tmp_path, 1000)

    async def run() -> None:
        async with gateway.http() as client:
            with audit._VERIFYING:
                busy = await client.get("/worlds/w/audit?verify=true")
                assert (busy.status_code, busy.json()["code"]) == (429, "E_RATE")
                assert (await client.get("/worlds/w/audit")).status_code == 200
            assert (await client.get("/worlds/w/audit?verify=true")).status_code == 200

    asyncio.run(run())
