"""Access.

Each misuse of a token, at each route and the socket, is refused with its code and changes nothing.
"""

import base64
import hashlib
import hmac
import http.client
import json
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi import APIRouter
from fastapi.routing import APIRoute
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from activities.sessions.sql import SqlSessionStore
from api.auth.access import GuardedRoute, check_table
from api.auth.keys import KeyRing, SigningKey
from api.auth.limits import RateLimit
from api.auth.route_roles import ROUTES, Access
from api.gateway import ROUTERS
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.access import Role, TokenRequest
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.errors import CODES
from qmtl_sdk.contracts.sessions import SessionOpen
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.nodes.strategy import BuiltStrategy
from qmtl_sdk.runtime.client import GatewayClient
from tests.support.desk import new_order_id
from tests.support.machine import Machine, wait_for
from tests.support.strategies import Trend
from tests.support.twofold import machine_for
from tests.support.worlds import POLICY, world

HOME = "home"
OTHER = "other"
EDGE = {"src": "domain:backtest", "dst": "domain:live", "active": False}
ORDER = {
    "order_id": new_order_id("home", "strategy:x"),
    "world_id": HOME,
    "strategy_id": "strategy:x",
    "execution_domain": "dryrun",
    "epoch": 1,
    "symbol": "AAPL",
    "side": "buy",
    "quantity": "1",
}


TARGET = {
    **{name: value for name, value in ORDER.items() if name not in ("side", "quantity")},
    "unit": "units",
    "value": "1",
    "decided_at": "2024-01-02T00:00:00Z",
}


SHARES = {"worlds": [{"world_id": HOME, "before": "0.2", "after": "0.1"}]}
FILL = {"fill_id": "f1", "quantity": "1", "price": "9", "account": "paper"}


@dataclass
class Place:
    machine: Machine
    owner: GatewayClient
    http: httpx.Client

    @property
    def keys(self) -> KeyRing:
        return KeyRing(self.machine.config.keys_path)

    @property
    def key(self) -> SigningKey:
        return self.keys.signing()

    def claims(self, **changes: Any) -> dict[str, Any]:
        """Those of a good operator's token, changed. None takes a claim away."""
        good = jwt.decode(self.machine.token(), options={"verify_signature": False})
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def signed(
        self,
        claims: dict[str, Any],
        key: Any = None,
        kid: str | None = None,
        algorithm: str = "EdDSA",
        **header: Any,
    ) -> str:
        return jwt.encode(
            claims,
            self.key.private if key is None else key,
            algorithm=algorithm,
            headers={"kid": self.key.kid if kid is None else kid, **header},
        )

    def grant(self, **grants: str) -> str:
        named = {name.replace("every", "*"): Role(role) for name, role in grants.items()}
        return self.machine.issue("tester", named).token

    def content(self) -> str:
        """What all stores hold, the register of tokens and rights apart."""
        database = self.machine.database()
        try:
            with database.read() as session:
                rows = {
                    name: session.connection().exec_driver_sql(f"SELECT * FROM {name} ORDER BY 1").fetchall()
                    for name in (
                        "world",
                        "policy",
                        "commit_log",
                        "decision",
                        "activation",
                        "rebalancing_schedule",
                        "session",
                        "queue",
                        "evidence",
                        "outcome",
                        "run_context",
                        "token",
                        "fence",
                        "apply",
                        "approval",
                        "order_log",
                        "ledger",
                        "position",
                        "flatten",
                        "allocation",
                        "edge_override",
                        "ack",
                    )
                }
            return hashlib.sha256(repr(rows).encode()).hexdigest() + str(
                len(list((self.machine.home / "artifacts").rglob("*")))
            )
        finally:
            database.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    machine = machine_for(tmp_path_factory.mktemp("access"), **{"QMTL_GATEWAY__RATE_PER_S": "5000"})
    try:
        machine.start_temporal()
        machine.start_relay()
        machine.start_gateway()
        with (
            machine.client() as client,
            GatewayClient(machine.url, machine.token("owner")) as owner,
            httpx.Client(base_url=machine.url, trust_env=False, timeout=30) as http,
        ):
            for name in (HOME, OTHER):
                client.create_world(world(name), POLICY)
            yield Place(machine, owner, http)
    finally:
        machine.close()


def submission(world_id: str = HOME) -> dict[str, Any]:
    build = BuiltStrategy(Trend)
    return {
        "world_id": world_id,
        "dag": build.dag.model_dump(mode="json"),
        "node_ids_crc32": build.crc32,
        "idempotency_key": uuid.uuid4().hex,
    }


def request_of(method: str, path: str) -> dict[str, Any]:
    """A request that a route would take from who may."""
    filled = path.format(
        world_id=HOME,
        strategy_id="strategy:x",
        lease_id="run.lease-1",
        content_hash="blake3:" + "0" * 64,
        version=1,
        number=1,
        session_id="none",
        token_id="none",
        topic=f"{HOME}.backtest.none",
        name="nobody",
        change_id="change-none",
        run_id="run-1",
    )
    bodies: dict[tuple[str, str], Any] = {
        ("POST", "/strategies"): submission(),
        ("POST", "/strategies/dry-run"): submission(),
        ("POST", "/flatten"): {"flatten_id": "flatten-1"},
        ("POST", "/worlds/{world_id}/flatten"): {"flatten_id": "flatten-1"},
        ("POST", "/fills"): {"world_id": HOME, "fills": [{"order_id": "order:none", "fill": FILL}]},
        ("POST", "/allocations"): {"allocations": [{"world_id": HOME, "weight": "0.1"}]},
        ("POST", "/rebalancing/plan"): SHARES,
        ("POST", "/rebalancing/apply"): {"request": {**SHARES, "run_id": "run-1"}},
        ("POST", "/rebalancing/execute"): {"request": {**SHARES, "run_id": "run-1"}},
        ("PUT", "/rebalancing/schedules/{name}"): {
            "method": "given",
            "worlds": [{"world_id": HOME, "target": "0.1"}],
        },
        ("POST", "/worlds/{world_id}/ledger"): {
            "booking_id": "b",
            "kind": "fee",
            "strategy_id": "strategy:x",
            "account": "paper",
            "symbol": "KO",
            "amount": "1",
            "reason": "x",
        },
        ("POST", "/leases/{lease_id}/complete"): {"returns_hash": "blake3:" + "0" * 64},
        ("POST", "/leases/{lease_id}/fail"): {"code": "E_CANCELLED", "message": "x", "final": True},
        ("POST", "/worlds"): {"spec": world(HOME)},
        ("POST", "/worlds/{world_id}/policies"): {"preset": "sandbox"},
        ("POST", "/worlds/{world_id}/decide"): {"idempotency_key": "key-00000000"},
        ("POST", "/worlds/{world_id}/policies/replay"): {"policy": {"preset": "sandbox"}},
        ("POST", "/worlds/{world_id}/apply"): {"run_id": "run-1"},
        ("POST", "/worlds/{world_id}/apply/plan"): {"run_id": "run-1"},
        ("POST", "/worlds/{world_id}/edges/overrides"): {
            "src": "domain:backtest",
            "dst": "domain:live",
            "active": False,
        },
        ("POST", "/orders"): {"orders": [ORDER]},
        ("POST", "/orders/withheld"): {"orders": [{"order": ORDER, "reason": "frozen"}]},
        ("POST", "/targets"): {"targets": [TARGET]},
        ("POST", "/sessions/{session_id}/ack"): {"sequence": 1},
        ("POST", "/sessions"): {"world_id": HOME, "strategy_id": "strategy:x", "runner": "r"},
        ("POST", "/queues/{topic}/messages"): {"messages": [{"key": "k", "ts": 0, "values": {}}]},
        ("POST", "/events/subscribe"): {"world_id": HOME},
        ("POST", "/tokens"): {"subject": "x", "grants": {HOME: "reader"}},
        ("POST", "/principals"): {"name": "x"},
    }
    asked = {
        "/queues/by_tag": {"tags": "a", "interval": "1d", "world_id": HOME},
        "/orders": {"world_id": HOME} if method == "GET" else {},
        "/orders/changes": {"world_id": HOME},
        "/worlds/{world_id}/policies/{version}/diff": {"to": 1},
    }
    return {
        "method": method,
        "url": filled,
        "json": bodies.get((method, path), {} if method in ("POST", "PATCH") else None),
        "params": asked.get(path, {}),
    }


def public_pem(place: Place) -> bytes:
    return place.key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hmac_with_public_key(place: Place) -> str:
    """The classic: the public key taken for the secret of an HMAC."""
    header = {"alg": "HS256", "typ": "JWT", "kid": place.key.kid}
    parts = [
        base64.urlsafe_b64encode(json.dumps(item).encode()).rstrip(b"=") for item in (header, place.claims())
    ]
    signature = hmac.new(public_pem(place), b".".join(parts), hashlib.sha256).digest()
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


def tampered(place: Place) -> str:
    head, _, signature = place.machine.token().split(".")
    body = base64.urlsafe_b64encode(json.dumps(place.claims(sub="somebody")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


def revoked(place: Place) -> str:
    created = place.machine.issue("gone", {"*": Role.OWNER})
    place.owner.revoke_token(created.info.token_id)
    return created.token


def unregistered(place: Place) -> str:
    """Signed with the right key, by somebody who stole it."""
    return place.signed(place.claims(jti=uuid.uuid4().hex, grants={"*": "owner"}))


def stream_token(place: Place) -> str:
    return place.owner.subscribe(Subscribe(world_id=HOME)).token


NOW = time.time()
MISUSES: dict[str, tuple[Callable[[Place], str | None], str]] = {
    "none at all": (lambda _: None, "E_TOKEN_MISSING"),
    "empty": (lambda _: "", "E_TOKEN_MISSING"),
    "not a JWT": (lambda _: "garbage", "E_TOKEN_INVALID"),
    "three dots of nothing": (lambda _: "a.b.c", "E_TOKEN_INVALID"),
    "far too long": (lambda _: "a" * 20_000, "E_TOKEN_INVALID"),
    "expired": (lambda p: p.signed(p.claims(exp=NOW - 3600)), "E_TOKEN_EXPIRED"),
    "expired a minute ago": (lambda p: p.signed(p.claims(exp=NOW - 60)), "E_TOKEN_EXPIRED"),
    "not valid yet": (lambda p: p.signed(p.claims(nbf=NOW + 86_400)), "E_TOKEN_EARLY"),
    "issued in the future": (
        lambda p: p.signed(p.claims(iat=NOW + 86_400, nbf=NOW + 86_400)),
        "E_TOKEN_EARLY",
    ),
    "another's key": (lambda p: p.signed(p.claims(), key=Ed25519PrivateKey.generate()), "E_TOKEN_INVALID"),
    "alg none": (lambda p: p.signed(p.claims(), key="", algorithm="none"), "E_TOKEN_INVALID"),
    "alg HS256 with a secret": (
        lambda p: p.signed(p.claims(), key="s" * 40, algorithm="HS256"),
        "E_TOKEN_INVALID",
    ),
    "HMAC with the public key": (hmac_with_public_key, "E_TOKEN_INVALID"),
    "unknown kid": (lambda p: p.signed(p.claims(), kid="nobody"), "E_TOKEN_KEY"),
    "empty kid": (lambda p: p.signed(p.claims(), kid=""), "E_TOKEN_KEY"),
    "a kid that is a path": (lambda p: p.signed(p.claims(), kid="../../etc/passwd"), "E_TOKEN_KEY"),
    "a key of its own in the header": (
        lambda p: p.signed(p.claims(), key=Ed25519PrivateKey.generate(), jwk={"kty": "OKP"}),
        "E_TOKEN_INVALID",
    ),
    "claims changed after signing": (tampered, "E_TOKEN_INVALID"),
    "wrong audience": (lambda p: p.signed(p.claims(aud="elsewhere")), "E_TOKEN_AUDIENCE"),
    "a stream's token": (stream_token, "E_TOKEN_AUDIENCE"),
    "another store's issuer": (lambda p: p.signed(p.claims(iss="qmtl:other")), "E_TOKEN_INVALID"),
    "no expiry": (lambda p: p.signed(p.claims(exp=None)), "E_TOKEN_INVALID"),
    "no id": (lambda p: p.signed(p.claims(jti=None)), "E_TOKEN_INVALID"),
    "no subject": (lambda p: p.signed(p.claims(sub=None)), "E_TOKEN_INVALID"),
    "no grants": (lambda p: p.signed(p.claims(grants=None)), "E_TOKEN_INVALID"),
    "grants that are text": (lambda p: p.signed(p.claims(grants="owner")), "E_TOKEN_INVALID"),
    "a role that there is not": (lambda p: p.signed(p.claims(grants={"*": "god"})), "E_TOKEN_INVALID"),
    "revoked": (revoked, "E_TOKEN_REVOKED"),
    "never given out": (unregistered, "E_TOKEN_REVOKED"),
}


def asked(place: Place, token: str | None, method: str, path: str, **headers: str) -> httpx.Response:
    request = request_of(method, path)
    auth = {} if token is None else {"authorization": f"Bearer {token}".strip()}

    def answer() -> httpx.Response | None:
        found = place.http.request(
            request["method"],
            request["url"],
            json=request["json"],
            params=request["params"],
            headers={**auth, **headers},
        )
        return found if found.status_code != 429 else None  # what is costly has a rate of its own

    return wait_for(answer, "an answer")


def answered(place: Place, token: str) -> int:
    return asked(place, token, "GET", "/worlds/{world_id}").status_code


def refused(response: httpx.Response, code: str, what: object) -> None:
    body = response.json()
    assert (response.status_code, body["code"]) == (CODES[code], code), (what, body)
    if response.status_code == 401:
        assert response.headers["www-authenticate"] == "Bearer"


GUARDED = [(method, path) for (method, path), entry in ROUTES.items() if entry.role is not None]


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misused_token_opens_no_route_and_changes_nothing(place: Place, misuse: str) -> None:
    make, code = MISUSES[misuse]
    token = make(place)
    before = place.content()
    for method, path in GUARDED:
        refused(asked(place, token, method, path), code, (misuse, method, path))
        refused(
            asked(place, token, method, path, **{"X-Allow-Live": "true"}),
            code,
            (misuse, method, path, "live header"),
        )
    assert place.content() == before


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_a_lower_role_is_refused_on_every_route(place: Place, method: str, path: str) -> None:
    needed = ROUTES[(method, path)].role
    assert needed is not None
    for role in Role:
        if not role.covers(needed):
            token = place.grant(every=role)
            before = place.content()
            refused(asked(place, token, method, path), "E_ROLE", (role, method, path))
            refused(
                asked(place, token, method, path, **{"X-Allow-Live": "true"}), "E_ROLE", (role, method, path)
            )
            assert place.content() == before


IN_A_WORLD = [
    (method, path)
    for (method, path), entry in ROUTES.items()
    if entry.role is not None and entry.world in ("path", "body", "query")
]


@pytest.mark.parametrize(("method", "path"), IN_A_WORLD)
def test_a_token_for_another_world_is_refused_in_this_one(place: Place, method: str, path: str) -> None:
    before_token = place.grant(other="operator")
    before = place.content()
    refused(asked(place, before_token, method, path), "E_WORLD_FORBIDDEN", (method, path))
    assert place.content() == before
    higher_elsewhere = place.grant(other="operator", home="reader")
    if ROUTES[(method, path)].role is not Role.READER:
        refused(asked(place, higher_elsewhere, method, path), "E_ROLE", (method, path))


def test_what_lies_behind_an_id_is_guarded_by_its_world(place: Place) -> None:
    database = place.machine.database()
    sessions = SqlSessionStore(database, 60)
    session = sessions.open(
        SessionOpen(world_id=HOME, strategy_id="strategy:x", runner="r"), "n", "dryrun", "test"
    )
    session_id = session.info.session_id
    token = place.grant(other="operator")
    for call in (
        ("POST", f"/sessions/{session_id}/heartbeat"),
        ("DELETE", f"/sessions/{session_id}"),
    ):
        response = httpx.request(
            call[0],
            place.machine.url + call[1],
            json={} if call[0] == "POST" else None,
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
        )
        refused(response, "E_WORLD_FORBIDDEN", call)
    sessions.end(session_id, "stopped", "test")
    database.close()
    listed = httpx.get(
        f"{place.machine.url}/sessions", headers={"authorization": f"Bearer {token}"}, trust_env=False
    ).json()
    assert listed == []
    worlds = httpx.get(
        f"{place.machine.url}/worlds", headers={"authorization": f"Bearer {token}"}, trust_env=False
    ).json()
    assert [item["spec"]["world"] for item in worlds] == [OTHER]


def test_a_session_is_of_the_actor_who_opened_it(place: Place) -> None:
    """Another author who reads its id can do nothing in it; an operator can end it."""
    database = place.machine.database()
    sessions = SqlSessionStore(database, 60)
    wanted = SessionOpen(world_id=HOME, strategy_id="strategy:x", runner="r")
    opened = sessions.open(wanted, "n", "dryrun", "tester")
    mine, operator = place.grant(home="author"), place.grant(home="operator")
    eve = place.machine.issue("eve", {HOME: Role.AUTHOR}).token

    def call(token: str, method: str, path: str, secret: str = "") -> httpx.Response:
        body = {"heartbeat": {}, "ack": {"sequence": 1}}.get(path)
        return place.http.request(
            method,
            f"/sessions/{opened.info.session_id}/{path}".rstrip("/"),
            json=body,
            headers={"authorization": f"Bearer {token}", "X-QMTL-Session": secret},
        )

    order = {**ORDER, "session_id": opened.info.session_id}
    before = place.content()
    for token, secret in ((eve, opened.secret), (eve, ""), (mine, ""), (mine, "guessed")):
        refused(call(token, "POST", "heartbeat", secret), "E_SESSION_HOLDER", secret)
        refused(call(token, "POST", "ack", secret), "E_SESSION_HOLDER", secret)
        refused(call(token, "DELETE", "", secret), "E_SESSION_HOLDER", secret)
        headers = {"authorization": f"Bearer {token}", "X-QMTL-Session": secret}
        sent = place.http.post("/orders", json={"orders": [order]}, headers=headers)
        assert [item["reason"] for item in sent.json()["verdicts"]] == ["no_session"]
        held = {"orders": [{"order": order, "reason": "frozen"}]}
        refused(place.http.post("/orders/withheld", json=held, headers=headers), "E_SESSION_HOLDER", secret)
    too_long = call(mine, "POST", "heartbeat", "s" * 129)
    refused(too_long, "E_BODY_INVALID", "a secret that is too long")
    assert "s" * 129 not in too_long.text
    assert place.content() == before
    two = [order, {**order, "session_id": "another", "order_id": new_order_id(HOME, "strategy:x")}]
    both = place.http.post("/orders", json={"orders": two}, headers={"authorization": f"Bearer {mine}"})
    refused(both, "E_BODY_INVALID", "two sessions")
    assert call(mine, "POST", "heartbeat", opened.secret).status_code == 200
    assert call(mine, "POST", "ack", opened.secret).status_code == 200
    listed = place.http.get("/sessions", headers={"authorization": f"Bearer {operator}"})
    ended = call(operator, "DELETE", "")
    assert ended.json()["end_reason"] == "stopped"
    for text in (listed.text, ended.text):
        assert opened.info.session_id in text
        assert opened.secret not in text
        assert sessions.find(opened.info.session_id).secret_hash not in text
    database.close()


# the socket

SOCKET_MISUSES: dict[str, tuple[Callable[[Place], str], str]] = {
    **{
        name: (lambda p, make=make: make(p) or "", "E_TOKEN_INVALID" if code == "E_TOKEN_MISSING" else code)
        for name, (make, code) in MISUSES.items()
        if name
        in ("none at all", "empty", "not a JWT", "alg none", "HMAC with the public key", "unknown kid")
    },  # type: ignore[misc]
    "a request's token": (lambda p: p.machine.token(), "E_TOKEN_AUDIENCE"),
    "expired": (lambda p: p.signed(stream_claims(p, exp=NOW - 60)), "E_TOKEN_EXPIRED"),
    "not valid yet": (lambda p: p.signed(stream_claims(p, nbf=NOW + 86_400)), "E_TOKEN_EARLY"),
    "another's key": (
        lambda p: p.signed(stream_claims(p), key=Ed25519PrivateKey.generate()),
        "E_TOKEN_INVALID",
    ),
    "no topics": (lambda p: p.signed(stream_claims(p, topics=None)), "E_TOKEN_INVALID"),
    "topics that are a number": (lambda p: p.signed(stream_claims(p, topics=7)), "E_TOKEN_INVALID"),
    "of a caller who was revoked": (lambda p: revoked_stream(p), "E_TOKEN_REVOKED"),
    "a parent that never was": (lambda p: p.signed(stream_claims(p, parent="nobody")), "E_TOKEN_REVOKED"),
}


def stream_claims(place: Place, **changes: Any) -> dict[str, Any]:
    good = jwt.decode(stream_token(place), options={"verify_signature": False})
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def revoked_stream(place: Place) -> str:
    created = place.machine.issue("gone", {HOME: Role.READER})
    with GatewayClient(place.machine.url, created.token) as client:
        token = client.subscribe(Subscribe(world_id=HOME)).token
    place.owner.revoke_token(created.info.token_id)
    return token


def closed_after(place: Place, *messages: dict[str, Any]) -> tuple[int, str]:
    with (
        connect(place.owner.subscribe(Subscribe(world_id=HOME)).stream_url, proxy=None) as socket,
        pytest.raises(ConnectionClosed) as caught,
    ):
        for message in messages:
            socket.send(json.dumps(message))
        while True:
            socket.recv(timeout=20)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason.partition(":")[0]


@pytest.mark.parametrize("misuse", SOCKET_MISUSES)
def test_a_misused_token_opens_no_stream(place: Place, misuse: str) -> None:
    make, code = SOCKET_MISUSES[misuse]
    token = make(place)
    assert closed_after(place, {"type": "hello", "token": token}) == (1008, code)
    response = httpx.get(
        f"{place.machine.url}/events/poll",
        headers={"authorization": f"Bearer {token}".strip()},
        trust_env=False,
    )
    refused(response, "E_TOKEN_MISSING" if not token else code, misuse)


def subscribed(
    place: Place,
    world_id: str = HOME,
    strategy_id: str = "",
    topics: tuple[str, ...] = ("policy", "activation"),
    owner: GatewayClient | None = None,
) -> str:
    return (
        (owner or place.owner)
        .subscribe(Subscribe(world_id=world_id, strategy_id=strategy_id, topics=topics))
        .token
    )


def test_a_refresh_with_a_good_token_goes_on(place: Place) -> None:
    with connect(place.owner.subscribe(Subscribe(world_id=HOME)).stream_url, proxy=None) as socket:
        socket.send(json.dumps({"type": "hello", "token": subscribed(place)}))
        socket.send(json.dumps({"type": "refresh", "token": subscribed(place)}))
        while json.loads(socket.recv(timeout=10))["type"] != "refreshed":
            pass


def test_a_foreign_token_on_refresh_closes_the_socket(place: Place) -> None:
    with GatewayClient(place.machine.url, place.grant(home="reader")) as another:
        foreign = {
            "another world": (subscribed(place, OTHER), "E_WORLD_FORBIDDEN"),
            "another strategy": (subscribed(place, strategy_id="strategy:y"), "E_STRATEGY_FORBIDDEN"),
            "other topics": (subscribed(place, topics=("decisions",)), "E_TOPIC_FORBIDDEN"),
            "another caller": (subscribed(place, owner=another), "E_TOKEN_INVALID"),
            "expired": (place.signed(stream_claims(place, exp=NOW - 60)), "E_TOKEN_EXPIRED"),
        }
        for what, (token, code) in foreign.items():
            assert closed_after(
                place, {"type": "hello", "token": subscribed(place)}, {"type": "refresh", "token": token}
            ) == (1008, code), what


def test_a_position_in_a_topic_that_the_token_is_not_for_closes_the_socket(place: Place) -> None:
    assert closed_after(
        place, {"type": "hello", "token": subscribed(place), "positions": {"decisions": 0}}
    ) == (1008, "E_TOPIC_FORBIDDEN")


def test_a_stream_ends_with_its_token_and_with_the_one_that_it_was_got_with(place: Place) -> None:
    soon = place.signed(stream_claims(place, exp=time.time() + 1.5))
    assert closed_after(place, {"type": "hello", "token": soon}) == (1008, "E_TOKEN_EXPIRED")
    created = place.machine.issue("brief", {HOME: Role.READER})
    with GatewayClient(place.machine.url, created.token) as client:
        subscription = client.subscribe(Subscribe(world_id=HOME))
    with connect(subscription.stream_url, proxy=None) as socket, pytest.raises(ConnectionClosed) as caught:
        socket.send(json.dumps({"type": "hello", "token": subscription.token}))
        socket.recv(timeout=10)
        place.owner.revoke_token(created.info.token_id)
        while True:
            socket.recv(timeout=20)
    assert caught.value.rcvd is not None
    assert caught.value.rcvd.reason.startswith("E_TOKEN_REVOKED")


# keys, grants, limits


def test_after_a_rotation_old_tokens_are_good_for_the_overlap_and_no_longer(place: Place) -> None:
    old = place.grant(home="reader")
    with (
        GatewayClient(place.machine.url, place.machine.token()) as operator,
        pytest.raises(QmtlError) as caught,
    ):
        operator.rotate_keys(0)
    assert caught.value.code == "E_ROLE"
    before = place.key.kid
    jwks = place.owner.rotate_keys(3600)
    assert {before, place.key.kid} <= {key["kid"] for key in jwks["keys"]}
    assert before != place.key.kid
    assert asked(place, old, "GET", "/worlds/{world_id}").status_code == 200
    path = place.machine.config.keys_path
    keys = json.loads(path.read_text())
    for key in keys[:-1]:
        key["retires_at"] = "2020-01-01T00:00:00Z"
    aside = path.with_name("aside.json")
    aside.write_text(json.dumps(keys))
    kept = path.with_name("kept.json")
    os.rename(path, kept)
    os.rename(aside, path)
    try:
        # A Gateway looks at the file again within LOOK_S.
        wait_for(lambda: answered(place, old) != 200, "end of the overlap", 5)
        refused(asked(place, old, "GET", "/worlds/{world_id}"), "E_TOKEN_KEY", "after the overlap")
    finally:
        os.rename(kept, path)
    wait_for(lambda: answered(place, old) == 200, "return of the key", 5)


def test_the_public_keys_verify_what_is_signed_and_hold_no_secret(place: Place) -> None:
    found = httpx.get(f"{place.machine.url}/events/jwks", trust_env=False).json()
    assert all(set(key) == {"kty", "crv", "alg", "use", "kid", "x"} for key in found["keys"])
    token = place.machine.token()
    key = next(key for key in found["keys"] if key["kid"] == jwt.get_unverified_header(token)["kid"])
    assert jwt.decode(token, jwt.PyJWK(key).key, algorithms=["EdDSA"], audience="gateway")["grants"] == {
        "*": "operator"
    }


def test_secrets_lie_in_files_that_only_their_owner_reads(place: Place) -> None:
    for path in (
        place.machine.config.keys_path,
        place.machine.config.local_token_path(),
        place.machine.config.local_token_path("owner"),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_only_an_owner_registers_people_and_issues_tokens_to_others(place: Place) -> None:
    with GatewayClient(place.machine.url, place.grant(every="operator")) as operator:
        before = (place.content(), place.owner.principals())
        for call in (
            lambda: operator.add_principal("mallory"),
            lambda: operator.disable_principal("ana"),
            lambda: operator.create_token(TokenRequest(subject="ana", grants={HOME: Role.READER})),
            lambda: operator.create_token(TokenRequest(subject="tester", grants={"*": Role.OWNER})),
        ):
            with pytest.raises(QmtlError) as caught:
                call()
            assert caught.value.code in ("E_ROLE", "E_GRANT", "E_WORLD_FORBIDDEN")
        assert (place.content(), place.owner.principals()) == before
        renewed = operator.create_token(TokenRequest(subject="tester", grants={"*": Role.OPERATOR}))
        assert (renewed.info.created_by, renewed.info.issuers[-1:]) == ("tester", ("registrar",))
        mine = next(item for item in place.owner.tokens() if item.token_id == renewed.info.parent_id)
        assert renewed.info.expires_at == mine.expires_at, "it ends with the one it was issued with"
        place.owner.revoke_token(mine.token_id)
        revoked = GatewayClient(place.machine.url, renewed.token)
        with revoked, pytest.raises(QmtlError, match="E_TOKEN_REVOKED"):
            revoked.worlds()
    for name in ("system", "apply", "Venue"):
        with pytest.raises(QmtlError, match="E_PRINCIPAL_RESERVED"):
            place.owner.add_principal(name)
    with pytest.raises(QmtlError, match="E_PRINCIPAL_UNKNOWN"):
        place.owner.create_token(TokenRequest(subject="nobody", grants={HOME: Role.READER}))


def test_no_one_grants_more_than_they_have(place: Place) -> None:
    with GatewayClient(place.machine.url, place.grant(home="operator")) as operator:
        assert operator.create_token(TokenRequest(subject="tester", grants={HOME: Role.OPERATOR})).token
        for grants in ({HOME: Role.OWNER}, {OTHER: Role.READER}, {"*": Role.READER}):
            with pytest.raises(QmtlError) as caught:
                operator.create_token(TokenRequest(subject="tester", grants=grants))
            assert caught.value.code == "E_GRANT"
        owners = next(
            item
            for item in place.owner.tokens()
            if Role.OWNER in item.grants.values() and item.revoked_at is None
        )
        with pytest.raises(QmtlError) as caught:
            operator.revoke_token(owners.token_id)
        assert caught.value.code == "E_GRANT"
        with pytest.raises(QmtlError) as caught:
            operator.revoke_token("nobody")
        assert caught.value.code == "E_TOKEN_UNKNOWN"
        mine = operator.tokens()
        assert all(set(item.grants) <= {HOME} for item in mine)
        assert [operator.tokens(limit=1), operator.tokens(mine[0].token_id)] == [mine[:1], mine[1:]]


def test_live_needs_the_header_besides_the_role_and_never_instead_of_it(place: Place) -> None:
    spec = {**world("live_world"), "allow_live": True}
    author, operator = place.grant(every="author"), place.machine.token()
    for token, headers, code in (
        (author, {"X-Allow-Live": "true"}, "E_ROLE"),
        (author, {}, "E_ROLE"),
        (operator, {}, "E_LIVE_HEADER"),
        (operator, {"X-Allow-Live": "false"}, "E_LIVE_HEADER"),
        (operator, {"X-Allow-Live": "1"}, "E_LIVE_HEADER"),
    ):
        response = httpx.post(
            f"{place.machine.url}/worlds",
            json={"spec": spec},
            headers={"authorization": f"Bearer {token}", **headers},
            trust_env=False,
        )
        refused(response, code, (headers, code))
    response = httpx.post(
        f"{place.machine.url}/worlds",
        json={"spec": spec},
        headers={"authorization": f"Bearer {operator}", "X-Allow-Live": "true"},
        trust_env=False,
    )
    assert response.status_code == 201


def test_the_audit_trail_names_who_did_it(place: Place) -> None:
    with GatewayClient(
        place.machine.url,
        place.machine.issue("alice", {"*": Role.OPERATOR}).token,
    ) as alice:
        alice.create_world(world("by_alice"), POLICY)
    database = place.machine.database()
    with database.read() as session:
        actors = (
            session.connection()
            .exec_driver_sql("SELECT DISTINCT actor FROM audit WHERE world_id = 'by_alice'")
            .fetchall()
        )
    database.close()
    assert actors == [("alice",)]


def test_an_owner_alone_reads_who_registered_whom(place: Place) -> None:
    """What belonged to no world was in chains that nobody could read or verify."""
    place.machine.issue("bella", {"*": Role.READER})
    with GatewayClient(place.machine.url, place.machine.token("owner")) as owner:
        found = owner.audit(None, limit=1000, verify=True)
        with pytest.raises(QmtlError, match="there is no world") as caught:
            owner.audit("bella")
    assert caught.value.code == "E_WORLD_UNKNOWN"
    done = {(entry["action"], entry["subject"], entry["actor"]) for entry in found["entries"]}
    assert ("principal.added", "bella", "registrar") in done
    assert found["verified"] == len(found["entries"])
    with place.machine.client() as operator, pytest.raises(QmtlError) as refused:
        operator.audit(None)
    assert refused.value.code == "E_ROLE"


def test_a_new_route_without_a_role_does_not_start() -> None:
    check_table(ROUTERS)
    forgotten = APIRouter(route_class=GuardedRoute)
    forgotten.add_api_route("/forgotten", lambda: None)
    with pytest.raises(RuntimeError, match="/forgotten"):
        check_table([*ROUTERS, forgotten])
    unguarded = APIRouter()
    unguarded.add_api_route("/health", lambda: None, methods=["GET"])
    with pytest.raises(RuntimeError, match="without a guard"):
        check_table([router for router in ROUTERS] + [unguarded])  # noqa: C416  a list to add to
    assert all(isinstance(entry, Access) for entry in ROUTES.values())
    assert {
        path
        for router in ROUTERS
        for route in router.routes
        if isinstance(route, APIRoute)
        for path in [route.path]
    } == {path for _, path in ROUTES}


def test_what_is_open_to_anyone_tells_nothing_of_worlds(place: Place) -> None:
    for (method, path), entry in ROUTES.items():
        if entry.role is None and path != "/events/poll":
            response = asked(place, None, method, path)
            assert response.status_code in (200, 503), path
            assert "us_equities_1d" not in response.text


def test_who_sends_too_much_learns_when_to_come_back() -> None:
    limit = RateLimit(10)
    for _ in range(20):
        limit.take("a")
    with pytest.raises(QmtlError) as caught:
        limit.take("a")
    assert caught.value.code == "E_RATE"
    assert 0 < caught.value.details["retry_after"] <= 0.2
    limit.take("b")


def test_ten_thousand_subscriptions_by_one_caller_meet_the_limit_and_others_do_not(tmp_path: Path) -> None:
    machine = machine_for(tmp_path, **{"QMTL_GATEWAY__RATE_PER_S": "20"})
    try:
        machine.start_temporal()
        machine.start_gateway()
        with machine.client() as client:
            client.create_world(world(HOME), POLICY)
            other = machine.issue("other", {HOME: Role.READER}).token
        answers = {200: 0, 429: 0}
        connection = http.client.HTTPConnection("127.0.0.1", machine.port, timeout=30)

        def subscribe(token: str) -> int:
            """Over a plain connection: a client of httpx would take longer than the Gateway."""
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request("POST", "/events/subscribe", json.dumps({"world_id": HOME}), headers)
            response = connection.getresponse()
            body = json.loads(response.read())
            if response.status == 429:
                assert body["code"] == "E_RATE"
                assert int(response.headers["retry-after"]) >= 1
            return response.status

        with closing(connection):
            greedy, began = machine.token(), time.monotonic()
            for _ in range(10_000):
                answers[subscribe(greedy)] += 1
            assert subscribe(other) == 200
        assert answers[200] <= 40 + 20 * (time.monotonic() - began) + 1
        assert answers[429] > 1000
    finally:
        machine.close()


def test_a_schedule_is_guarded_by_all_its_worlds(place: Place) -> None:
    """Also by those that it had before: nobody takes it over with another world."""
    name = "/rebalancing/schedules/guarded"

    def call(token: str, method: str, url: str = name, *worlds: str) -> httpx.Response:
        body = {"method": "given", "worlds": [{"world_id": world, "target": "0.1"} for world in worlds]}
        headers = {"authorization": f"Bearer {token}"}
        return place.http.request(method, url, json=body if worlds else None, headers=headers)

    both, other = place.grant(home="operator", other="operator"), place.grant(other="operator")
    reads_home = place.grant(other="operator", home="reader")
    shares = {"allocations": [{"world_id": world, "weight": "0.1"} for world in (HOME, OTHER)]}
    place.owner.set_allocations(AllocationUpdate.model_validate(shares))
    assert call(both, "PUT", name, HOME, OTHER).status_code == 200
    before = place.content()
    for method, worlds in (("GET", ()), ("DELETE", ()), ("PUT", (OTHER,)), ("PUT", (HOME, OTHER))):
        refused(call(other, method, name, *worlds), "E_WORLD_FORBIDDEN", (method, worlds))
    for method, worlds in (("DELETE", ()), ("PUT", (OTHER,))):
        refused(call(reads_home, method, name, *worlds), "E_ROLE", (method, worlds))
    assert call(other, "GET", "/rebalancing/schedules").json() == []
    assert place.content() == before
    assert [item["name"] for item in call(reads_home, "GET", "/rebalancing/schedules").json()] == ["guarded"]
    refused(call(both, "PUT", "/rebalancing/schedules/Not%20good", HOME), "E_BODY_INVALID", "its name")
    assert call(both, "DELETE").status_code == 204
    refused(call(both, "DELETE"), "E_SCHEDULE_UNKNOWN", "removed")
