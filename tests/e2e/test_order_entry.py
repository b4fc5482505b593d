"""The fast path of `POST /orders` answers as the route does, whatever is wrong with a request.

The same request goes once by the fast path and once by the route, which takes the same JSON under a content
type with parameters.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import httpx
import jwt
import pytest

from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.orders import OrderVerdicts
from qmtl_sdk.contracts.sessions import SESSION_HEADER
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.desk import Desk
from tests.support.machine import Machine
from tests.support.twofold import machine_for

SHORT = "application/json"
ROUTE = "application/json; charset=utf-8"
LIMIT = 20_000


class Place:
    def __init__(self, machine: Machine, desk: Desk, owner: GatewayClient, http: httpx.Client) -> None:
        self.machine = machine
        self.desk = desk
        self.owner = owner
        self.http = http
        self.session = desk.session()
        self.good = self.grant(**{desk.world: "author"})

    def grant(self, **grants: str) -> str:
        token = self.machine.issue("ana", {name: Role(role) for name, role in grants.items()}).token
        self.knows(token)
        return token

    def revoked(self) -> str:
        """A token that was good when the Gateway last saw it."""
        token = self.grant(**{self.desk.world: "author"})
        claims = jwt.decode(token, options={"verify_signature": False})
        self.owner.revoke_token(claims["jti"])
        return token

    def knows(self, token: str) -> None:
        """Make the Gateway verify the token's signature, which only the route does."""
        self.http.get("/worlds", headers={"authorization": f"Bearer {token}"})

    def order(self, world: str = "", **changes: Any) -> dict[str, Any]:
        order = self.desk.order(self.session, self.desk.epoch, world_id=world or self.desk.world)
        return {**order.json_dict(), **changes}

    def send(self, body: bytes, content_type: str, headers: dict[str, str]) -> httpx.Response:
        secret = {SESSION_HEADER: self.desk.caller.secrets[self.session]}
        return self.http.post(
            "/orders", content=body, headers={"content-type": content_type, **secret, **headers}
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    machine = machine_for(tmp_path_factory.mktemp("entry"), **{"QMTL_GATEWAY__MAX_BODY_BYTES": str(LIMIT)})
    try:
        machine.start_temporal()
        machine.start_gateway()
        with (
            closing(machine.database()) as database,
            GatewayClient(machine.url, machine.token("owner")) as owner,
            httpx.Client(base_url=machine.url, trust_env=False, timeout=30) as http,
        ):
            desk = Desk(database)
            desk.apply("dryrun")
            yield Place(machine, desk, owner, http)
    finally:
        machine.close()


def orders(*found: dict[str, Any]) -> bytes:
    return json.dumps({"orders": list(found)}).encode()


BODIES: dict[str, Callable[[Place], bytes]] = {
    "E_BODY_JSON": lambda place: b'{"orders": [',
    "E_BODY_JSON of no text": lambda place: b"\xff\xfe\xfd",
    "E_BODY_INVALID of an empty body": lambda place: b"",
    "E_BODY_INVALID of no order": lambda place: orders(),
    "E_BODY_INVALID of a list": lambda place: b"[]",
    "E_BODY_INVALID of a field": lambda place: orders(place.order(quantity="0")),
    "E_BODY_INVALID of an unknown key": lambda place: orders(place.order(colour="red")),
    "E_BODY_JSON of deep JSON": lambda place: b'{"orders": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "E_BODY_TOO_LARGE": lambda place: orders(place.order()) + b" " * LIMIT,
    "E_WORLD_FORBIDDEN": lambda place: orders(place.order("elsewhere")),
    "E_BODY_INVALID of another strategy's id": lambda place: orders(place.order(order_id="order:twice")),
}


@pytest.mark.parametrize("what", BODIES)
def test_a_bad_body_gets_the_answer_of_the_route(place: Place, what: str) -> None:
    body, headers = BODIES[what](place), {"authorization": f"Bearer {place.good}"}
    short, route = (place.send(body, content_type, headers) for content_type in (SHORT, ROUTE))
    assert short.json()["code"] == what.split()[0]
    assert (short.status_code, short.json()) == (route.status_code, route.json())
    assert short.headers["content-type"] == route.headers["content-type"]


CALLERS: dict[str, tuple[str, Callable[[Place], dict[str, str]]]] = {
    "no token": ("E_TOKEN_MISSING", lambda place: {}),
    "another scheme": ("E_TOKEN_MISSING", lambda place: {"authorization": f"Basic {place.good}"}),
    "no JWT": ("E_TOKEN_INVALID", lambda place: {"authorization": "Bearer abc"}),
    "a changed token": ("E_TOKEN_INVALID", lambda place: {"authorization": f"Bearer {place.good}x"}),
    "a revoked token": ("E_TOKEN_REVOKED", lambda place: {"authorization": f"Bearer {place.revoked()}"}),
    "a reader": ("E_ROLE", lambda place: {"authorization": f"Bearer {place.grant(w='reader')}"}),
    "a stranger": (
        "E_WORLD_FORBIDDEN",
        lambda place: {"authorization": f"Bearer {place.grant(other='author')}"},
    ),
}


@pytest.mark.parametrize("who", CALLERS)
def test_a_caller_without_the_right_gets_the_answer_of_the_route(place: Place, who: str) -> None:
    code, make = CALLERS[who]
    headers, body = make(place), orders(place.order())
    short, route = (place.send(body, content_type, headers) for content_type in (SHORT, ROUTE))
    assert short.json()["code"] == code
    assert (short.status_code, short.json()) == (route.status_code, route.json())
    assert short.headers.get("www-authenticate") == route.headers.get("www-authenticate")


def test_an_unknown_world_is_named_either_way(place: Place) -> None:
    headers = {"authorization": f"Bearer {place.machine.token()}"}
    place.knows(place.machine.token())
    body = orders(place.order("nowhere"))
    short, route = (place.send(body, content_type, headers) for content_type in (SHORT, ROUTE))
    assert short.json()["code"] == "E_WORLD_UNKNOWN"
    assert (short.status_code, short.json()) == (route.status_code, route.json())


@pytest.mark.parametrize("content_type", ["text/plain", "", "application/problem+json", "APPLICATION/JSON"])
def test_another_content_type_is_for_the_route(place: Place, content_type: str) -> None:
    """The route takes what says that it is JSON, in any spelling, and refuses the rest."""
    answer = place.send(orders(place.order()), content_type, {"authorization": f"Bearer {place.good}"})
    assert (answer.status_code == 200) == ("json" in content_type.lower())


def test_verdicts_are_the_same_bytes_either_way(place: Place) -> None:
    """An accepted, a refused and a repeated order."""
    body = orders(place.order(), place.order(epoch=0), place.order(symbol="Ünïcode"))
    headers = {"authorization": f"Bearer {place.good}"}
    short, route = (place.send(body, content_type, headers) for content_type in (SHORT, ROUTE))
    assert [verdict.accepted for verdict in OrderVerdicts.model_validate_json(short.content).verdicts] == [
        True,
        False,
        True,
    ]
    assert short.content == route.content
    differs = {"date"}
    assert {name: value for name, value in short.headers.items() if name not in differs} == {
        name: value for name, value in route.headers.items() if name not in differs
    }


def test_a_body_in_two_parts_is_read_whole(place: Place) -> None:
    body = orders(place.order())

    def parts() -> Iterator[bytes]:
        yield body[:10]
        yield body[10:]

    headers = {
        "authorization": f"Bearer {place.good}",
        "content-type": SHORT,
        "content-length": str(len(body)),
    }
    assert place.http.post("/orders", content=parts(), headers=headers).status_code == 200
    del headers["content-length"]  # then it comes in chunks, whose length nobody knows before: for the route
    assert place.http.post("/orders", content=parts(), headers=headers).status_code == 200
