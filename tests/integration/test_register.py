"""The register's word on tokens for many requests at once: shared, and never older than the request."""

import asyncio
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import pytest

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore, TokenState
from activities.storage.database import Database
from api.auth.register import TokenRegister
from qmtl_sdk.contracts.access import EVERY_WORLD, Role, TokenInfo


class Slow(SqlTokenStore):
    """The register, whose looks take as long as the test wants.

    It `has_read` what it will tell, and tells it when it may `go`. With `broken` it fails then.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.has_read = threading.Event()
        self.go = threading.Event()
        self.looks = 0
        self.broken = False

    def states(self, token_ids: Iterable[str]) -> dict[str, TokenState]:
        self.looks += 1
        found = super().states(token_ids)
        self.has_read.set()
        assert self.go.wait(30)
        if self.broken:
            raise OSError("the register can't be read")
        return found

    async def one_has_read(self) -> None:
        assert await asyncio.to_thread(self.has_read.wait, 30)


@pytest.fixture
def store(database: Database) -> Slow:
    slow, now = Slow(database), datetime.now(UTC)
    for name in ("ana", "ben"):
        SqlPrincipalStore(database).add(name, "test")
        slow.add(
            TokenInfo(
                token_id=name,
                subject=name,
                grants={EVERY_WORLD: Role.AUTHOR},
                created_by="test",
                issuers=("test",),
                created_at=now,
                expires_at=now + timedelta(days=1),
            )
        )
    return slow


def test_a_request_that_came_after_a_token_was_taken_back_never_gets_an_earlier_look(store: Slow) -> None:
    async def run() -> None:
        register = TokenRegister(store)
        before = asyncio.create_task(register.state("ana"))
        await store.one_has_read()
        await asyncio.to_thread(store.revoke, "ana", "olga")
        after = [asyncio.create_task(register.state(name)) for name in ("ana", "ben", "nobody")]
        await asyncio.sleep(0)  # they have asked
        store.go.set()
        assert await before == "good"
        assert await asyncio.gather(*after) == ["revoked", "good", "unknown"]

    asyncio.run(run())


def test_requests_at_once_share_a_look(store: Slow) -> None:
    async def run() -> None:
        register = TokenRegister(store)
        first = asyncio.create_task(register.state("ana"))
        await store.one_has_read()
        others = [asyncio.create_task(register.state(("ana", "ben")[n % 2])) for n in range(100)]
        await asyncio.sleep(0)
        store.go.set()
        assert {await first, *await asyncio.gather(*others)} == {"good"}
        assert store.looks == 2
        assert await register.state("ben") == "good", "it looks again after it had nothing to do"

    asyncio.run(run())


def test_a_look_that_fails_fails_for_those_who_waited_and_for_nobody_else(store: Slow) -> None:
    async def run() -> None:
        register = TokenRegister(store)
        store.broken = True
        gone, told = asyncio.create_task(register.state("ana")), asyncio.create_task(register.state("ben"))
        await store.one_has_read()
        gone.cancel()
        store.go.set()
        found = await asyncio.gather(gone, told, return_exceptions=True)
        assert [type(item) for item in found] == [asyncio.CancelledError, OSError]
        store.broken = False
        assert await register.state("ana") == "good"

    asyncio.run(run())
