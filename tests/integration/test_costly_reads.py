"""What takes much of a Gateway, by processor time or by waiting, is limited for each caller."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from activities.settings import Settings
from activities.stores import Stores
from api import problems
from api.auth.keys import KeyRing
from api.auth.limits import RateLimit, SocketLimit
from api.auth.tokens import Tokens
from api.routes import applies, ledger, policies
from qmtl_sdk.contracts.access import Role, TokenRequest
from temporal.applies import ApplyService
from tests.support.desk import Desk
from tests.support.statements import statements

REPLAY = {"policy": {"preset": "sandbox"}}


class Gateway:
    """The routes of a world over a real store, for two readers with real tokens."""

    def __init__(self, stores: Stores, home: Path, costly_per_s: float = 1e6) -> None:
        self.desk = Desk(stores.database)
        self.sockets = SocketLimit(2)
        self.tokens = Tokens(KeyRing(home / "keys.json"), stores.tokens, stores.database.store_id)
        self.app = FastAPI()
        problems.install(self.app)
        self.app.include_router(policies.router)
        self.app.include_router(applies.router)
        self.app.include_router(ledger.router)
        self.app.state.tokens = self.tokens
        self.app.state.limit = RateLimit(1e6)
        self.app.state.costly_limit = RateLimit(costly_per_s)
        client: Any = None  # an apply is only read here
        service = ApplyService(client, "s", stores.apply_requests, stores.approvals, stores.apply_steps)
        self.app.state.gateway = SimpleNamespace(
            stores=stores, sockets=self.sockets, applies=service, ui_link=lambda _: ""
        )
        self._issued = {}
        for name in ("rita", "rob"):
            stores.principals.add(name, "olga")
            request = TokenRequest(subject=name, grants={"*": Role.READER})
            self._issued[name] = self.tokens.issue(request, "olga").token

    @asynccontextmanager
    async def http(self, name: str) -> AsyncIterator[httpx.AsyncClient]:
        headers = {"authorization": f"Bearer {self._issued[name]}"}
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            yield client


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    with closing(Stores.open(Settings(home=tmp_path))) as found:
        yield found


def is_limited(answer: httpx.Response, code: str) -> bool:
    return (answer.status_code, answer.json().get("code")) == (429, code)


def test_a_reader_replays_no_faster_than_the_rate(stores: Stores, tmp_path: Path) -> None:
    gateway = Gateway(stores, tmp_path, costly_per_s=0.01)

    async def run() -> None:
        async with gateway.http("rita") as rita, gateway.http("rob") as rob:
            assert (await rita.post("/worlds/w/policies/replay", json=REPLAY)).status_code == 200
            again = await rita.post("/worlds/w/policies/replay", json=REPLAY)
            assert is_limited(again, "E_RATE")
            assert int(again.headers["retry-after"]) > 1
            assert (await rita.get("/worlds/w/policies")).status_code == 200, "it costs little"
            assert (await rob.post("/worlds/w/policies/replay", json=REPLAY)).status_code == 200

    asyncio.run(run())


def test_a_reader_has_one_replay_at_a_time(stores: Stores, tmp_path: Path) -> None:
    """One over a thousand decisions takes minutes, so that a rate bounds nothing."""
    gateway = Gateway(stores, tmp_path)

    async def run() -> None:
        async with gateway.http("rita") as rita, gateway.http("rob") as rob:
            with policies._REPLAYS.held("rita"):
                assert is_limited(await rita.post("/worlds/w/policies/replay", json=REPLAY), "E_RATE")
                assert (await rob.post("/worlds/w/policies/replay", json=REPLAY)).status_code == 200
            for _ in range(2):
                assert (await rita.post("/worlds/w/policies/replay", json=REPLAY)).status_code == 200

    asyncio.run(run())


def test_one_report_of_all_strategies_is_made_at_a_time(stores: Stores, tmp_path: Path) -> None:
    """Five readers had five of them made at once, each with a second of the processor that halts need."""
    gateway = Gateway(stores, tmp_path)

    async def run() -> None:
        async with gateway.http("rita") as rita, gateway.http("rob") as rob:
            with ledger._REPORTS.held("this Gateway"):
                for reader in (rita, rob):
                    assert is_limited(await reader.get("/worlds/w/report"), "E_RATE")
                one = await rob.get("/worlds/w/report", params={"strategy_id": "strategy:a"})
                assert one.status_code == 200, "it costs little"
            for reader in (rita, rob):
                assert (await reader.get("/worlds/w/report")).status_code == 200

    asyncio.run(run())


def test_one_ledger_is_checked_at_a_time(stores: Stores, tmp_path: Path) -> None:
    """Each reads a whole order log, and a caller may begin one every two seconds: they took all threads."""
    gateway = Gateway(stores, tmp_path)

    async def run() -> None:
        async with gateway.http("rita") as rita, gateway.http("rob") as rob:
            with ledger._CHECKS.held("this Gateway"):
                for reader in (rita, rob):
                    assert is_limited(await reader.post("/worlds/w/ledger/verify"), "E_RATE")
                assert (await rob.get("/worlds/w/report")).status_code == 200, "it is another kind"
            for reader in (rita, rob):
                assert (await reader.post("/worlds/w/ledger/verify")).status_code == 200
            assert (await rita.post("/worlds/none/ledger/verify")).status_code == 404
            assert (await rob.post("/worlds/w/ledger/verify")).status_code == 200, "an error ends it"

    asyncio.run(run())


def test_a_reader_has_so_many_requests_that_wait_and_each_reads_seldom(
    stores: Stores, tmp_path: Path
) -> None:
    """Each looked at the database fifty times a second, and there was no limit to them."""
    gateway = Gateway(stores, tmp_path)
    page = f"/worlds/w/applies/{gateway.desk.request('dryrun')}"

    async def run() -> None:
        async with gateway.http("rita") as rita, gateway.http("rob") as rob:
            waiting = [asyncio.create_task(rita.get(page, params={"wait": 60})) for _ in range(2)]
            async with asyncio.timeout(30):
                while gateway.sockets.open < 2:
                    await asyncio.sleep(0.01)
            assert is_limited(await rita.get(page, params={"wait": 60}), "E_SOCKETS")
            assert (await rita.get(page)).status_code == 200, "it does not wait"
            with statements() as found:
                assert (await rob.get(page, params={"wait": 2})).status_code == 200
            reads = [text for text, _ in found if "FROM apply " in text.replace("\n", " ")]
            assert 3 <= len(reads) <= 3 * 8, "three requests wait, with pauses of 20, 40, 80 … 500 ms"
            for task in waiting:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            assert gateway.sockets.open == 0

    asyncio.run(run())
