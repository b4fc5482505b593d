"""Which orders take the fast path, and that others reach the route with their body."""

import asyncio
import json
import time
from datetime import UTC
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.datastructures import State
from starlette.types import Message, Receive, Scope, Send

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.fence.acceptance import OrderAcceptance
from activities.storage.database import Database
from api.acceptance import AsyncAcceptance
from api.auth.keys import KeyRing
from api.auth.limits import RateLimit
from api.auth.tokens import Tokens
from api.order_entry import OrderEntry
from qmtl_sdk.contracts.access import Role, TokenRequest
from qmtl_sdk.contracts.orders import OrderBatch
from qmtl_sdk.contracts.sessions import SESSION_HEADER
from tests.support.desk import Desk

LIMIT = 4096


class Gateway:
    """The fast path over a real store, in front of a route that only says that it was reached."""

    def __init__(self, database: Database, home: Path) -> None:
        self.desk = Desk(database)
        self.desk.apply("dryrun")
        self.session = self.desk.session()
        self.store = SqlTokenStore(database)
        self.tokens = Tokens(KeyRing(home / "keys.json"), self.store, database.store_id)
        self.rate = RateLimit(1)
        self.acceptance = OrderAcceptance(database)
        SqlPrincipalStore(database).add("ana", "olga")
        issued = self.tokens.issue(TokenRequest(subject="ana", grants={"w": Role.AUTHOR}), "olga")
        self.token = issued.token
        self.token_id = issued.info.token_id
        self.routed: list[bytes] = []

    def body(self, **changes: Any) -> bytes:
        order = self.desk.order(self.session, self.desk.epoch).json_dict()
        return json.dumps({"orders": [{**order, **changes}]}).encode()

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        self.routed.append(body)

    async def known(self) -> None:
        """What the route does with a token that the Gateway sees for the first time."""
        await self.tokens.caller(self.token)

    async def post(self, body: bytes, parts: int = 1, **headers: str) -> dict[str, Any] | None:
        """Return the answer; None where the route was reached."""
        sent: list[Message] = []
        size = -(-len(body) // parts) or 1
        waiting = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
        messages = iter(
            {"type": "http.request", "body": part, "more_body": at < len(waiting)}
            for at, part in enumerate(waiting, 1)
        )

        async def receive() -> Message:
            return next(messages)

        async def send(message: Message) -> None:
            sent.append(message)

        state = SimpleNamespace(tokens=self.tokens, acceptance=AsyncAcceptance(self.acceptance.submit))
        with_defaults = {
            "authorization": f"Bearer {self.token}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            SESSION_HEADER.lower(): self.desk.caller.secrets[self.session],
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/orders",
            "headers": [(name.encode(), value.encode()) for name, value in with_defaults.items() if value],
        }
        application = State({"gateway": state, "limit": self.rate})
        await OrderEntry(self.route, application, LIMIT)(scope, receive, send)
        if not sent:
            return None
        answer = b"".join(message.get("body", b"") for message in sent)
        return {"status": sent[0]["status"], **json.loads(answer)}


@pytest.fixture
def gateway(database: Database, tmp_path: Path) -> Gateway:
    return Gateway(database, tmp_path)


def test_a_good_order_is_answered_without_the_route(gateway: Gateway) -> None:
    async def run() -> None:
        await gateway.known()
        for parts in (1, 3):
            answer = await gateway.post(gateway.body(), parts)
            assert answer is not None
            assert (answer["status"], answer["verdicts"][0]["accepted"]) == (200, True)
        assert gateway.routed == []

    asyncio.run(run())


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer abc"},
        {"content_type": "text/plain"},
        {"content_length": ""},
        {"content_length": str(LIMIT + 1)},
    ],
    ids=str,
)
def test_other_requests_reach_the_route_unread(gateway: Gateway, headers: dict[str, str]) -> None:
    async def run() -> None:
        await gateway.known()
        body = gateway.body()
        assert await gateway.post(body, **headers) is None
        assert gateway.routed == [body]

    asyncio.run(run())


def test_a_token_is_for_the_route_until_its_signature_was_verified(gateway: Gateway) -> None:
    async def run() -> None:
        body = gateway.body()
        assert await gateway.post(body) is None
        await gateway.known()
        assert await gateway.post(body) is not None

    asyncio.run(run())


def test_a_bad_body_reaches_the_route_whole_and_counts_once(gateway: Gateway) -> None:
    async def run() -> None:
        await gateway.known()
        for number, body in enumerate((b"{", gateway.body(quantity="0"), gateway.body(world_id="x"), b""), 1):
            assert await gateway.post(body, parts=2) is None
            assert gateway.routed[number - 1] == body
        level, _ = gateway.rate._buckets["ana"]
        assert level == pytest.approx(2, abs=0.5), "the route counts it, not the fast path"

    asyncio.run(run())


def test_a_caller_above_the_rate_is_refused_before_the_body_is_read(gateway: Gateway) -> None:
    async def run() -> None:
        await gateway.known()
        gateway.rate._buckets["ana"] = (0.0, time.monotonic() + 60)
        answer = await gateway.post(b"{")
        assert answer is not None
        assert (answer["status"], answer["code"]) == (429, "E_RATE")
        assert gateway.routed == []

    asyncio.run(run())


def test_a_revoked_token_sends_no_order(gateway: Gateway) -> None:
    """The route refuses it. Nothing of the Gateway has learnt of the revocation before the order comes."""

    async def run() -> None:
        await gateway.known()
        assert await gateway.post(gateway.body()) is not None
        await asyncio.to_thread(gateway.store.revoke, gateway.token_id, "olga")
        body = gateway.body()
        assert await gateway.post(body) is None
        assert gateway.routed == [body]
        orders = OrderBatch.model_validate_json(body).orders
        (verdict,) = gateway.acceptance.publish(orders, gateway.desk.caller)
        assert verdict.accepted, "the id is free: the revoked token's order left no row"

    asyncio.run(run())


def test_a_fault_of_the_gateway_is_answered_as_the_route_answers_one(gateway: Gateway) -> None:
    """No handler of the application lies around the short way."""

    async def run() -> None:
        await gateway.known()
        gateway.acceptance.submit = lambda *_: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        answer = await gateway.post(gateway.body())
        assert answer is not None
        assert (answer["status"], answer["code"]) == (500, "E_INTERNAL")

    asyncio.run(run())


ORDER = {
    "order_id": "order:00000000",
    "world_id": "w",
    "strategy_id": "s",
    "execution_domain": "dryrun",
    "epoch": 1,
    "symbol": "AAPL",
    "side": "buy",
    "quantity": "1",
}
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.decimals(allow_nan=True).map(str),
    st.text(max_size=8),
    st.datetimes().map(lambda at: at.replace(tzinfo=UTC).isoformat()),
    st.sampled_from(["GTC", "buy", "live", "1e400", "0x1", "1_000", " 1 ", "true", "2024-01-01T00:00:00Z"]),
)
KEYS = st.sampled_from(
    [*ORDER, "session_id", "reference_price", "time_in_force", "reduce_only", "decided_at", "x"]
)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_what_the_short_way_parses_the_route_parses_equally(changes: dict[str, Any]) -> None:
    """The short way parses text at once, the route a document that `json` has parsed."""
    text = json.dumps({"orders": [{**ORDER, **changes}]})
    try:
        short = OrderBatch.model_validate_json(text)
    except ValidationError:
        return  # then the route decides
    assert OrderBatch.model_validate(json.loads(text)) == short
