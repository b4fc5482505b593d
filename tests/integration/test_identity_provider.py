"""Tokens of an OpenID Connect provider, verified by the keys that it publishes."""

import asyncio
import base64
import contextlib
import hmac
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError
from structlog.testing import capture_logs

from activities.access.principals import SqlPrincipalStore
from activities.access.sql import SqlTokenStore
from activities.settings import OidcSettings
from activities.storage.database import Database
from api.auth import oidc
from api.auth.keys import KeyRing
from api.auth.oidc import IdentityProvider
from api.auth.tokens import Tokens
from qmtl_sdk.contracts.access import Caller, Role
from qmtl_sdk.contracts.errors import QmtlError

AUDIENCE = "qmtl"
ROLES = {"traders": {"equities": Role.AUTHOR}, "desk": {"*": Role.READER, "equities": Role.OPERATOR}}


class Provider:
    """An identity provider on this machine: metadata, a key set, and tokens."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"first": rsa.generate_private_key(65537, 2048)}
        self.listed = ["first"]
        self.reads = 0
        self.drips = False
        self.closed = threading.Event()
        provider = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = provider.answer(self.path)
                self.send_response(200 if body is not None else 404)
                self.end_headers()
                with contextlib.suppress(OSError):  # the reader has gone
                    while provider.drips and not provider.closed.wait(0.02):
                        self.wfile.write(b" ")
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.issuer = f"http://127.0.0.1:{self.server.server_port}/realm"
        self.metadata: dict[str, Any] = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/keys"}
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def answer(self, path: str) -> Any:
        if path.endswith("/.well-known/openid-configuration"):
            return self.metadata
        if path.endswith("/keys"):
            self.reads += 1
            return {
                "keys": [self.jwk(kid) for kid in self.listed]
                + [{"kty": "oct", "kid": "shared", "k": "AAAA"}]
            }
        return None

    def jwk(self, kid: str) -> dict[str, Any]:
        public = self.keys[kid].public_key()
        kind = (
            jwt.algorithms.RSAAlgorithm
            if isinstance(public, rsa.RSAPublicKey)
            else jwt.algorithms.ECAlgorithm
        )
        return {**json.loads(kind.to_jwk(public)), "kid": kid, "use": "sig"}

    def claims(self, **changes: Any) -> dict[str, Any]:
        now = time.time()
        good = {
            "iss": self.issuer,
            "aud": AUDIENCE,
            "sub": "ana",
            "groups": ["traders"],
            "iat": now,
            "exp": now + 300,
        }
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def token(self, kid: str = "first", algorithm: str = "RS256", key: Any = None, **changes: Any) -> str:
        signing = self.keys[kid] if key is None else key
        return jwt.encode(self.claims(**changes), signing, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.closed.set()
    found.server.shutdown()
    found.server.server_close()


class Gateway:
    """What a Gateway verifies tokens with."""

    def __init__(self, database: Database, home: Path, provider: Provider) -> None:
        self.principals = SqlPrincipalStore(database)
        self.store = SqlTokenStore(database)
        self.principals.add("ana", "olga")
        settings = OidcSettings(issuer=provider.issuer, audience=AUDIENCE, roles=ROLES)
        self.tokens = Tokens(
            KeyRing(home / "keys.json"), self.store, database.store_id, IdentityProvider(settings)
        )

    def caller(self, token: str) -> Caller:
        return asyncio.run(self.tokens.caller(token))

    def refused(self, token: str) -> str:
        before = self.store.page(lambda _: True, 100)
        with pytest.raises(QmtlError) as error:
            self.caller(token)
        assert self.store.page(lambda _: True, 100) == before
        return error.value.code


@pytest.fixture
def gateway(database: Database, tmp_path: Path, provider: Provider) -> Gateway:
    return Gateway(database, tmp_path, provider)


def test_a_token_of_the_provider_gives_the_roles_of_its_groups(gateway: Gateway, provider: Provider) -> None:
    found = gateway.caller(provider.token())
    assert (found.subject, found.grants) == ("ana", {"equities": Role.AUTHOR})
    found = gateway.caller(provider.token(groups=["traders", "desk", "unknown", 7]))
    assert found.grants == {"*": Role.READER, "equities": Role.OPERATOR}
    (newest, _) = gateway.store.page(lambda _: True, 100)
    assert (newest.subject, newest.issuers, newest.created_by) == ("ana", (provider.issuer,), "ana")


def forged(provider: Provider) -> str:
    return provider.token(key=rsa.generate_private_key(65537, 2048))


def confused(provider: Provider) -> str:
    """Signed with HMAC, and the public key as the secret: who lets the header choose accepts it."""
    public = provider.keys["first"].public_key()
    secret = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [{"alg": "HS256", "kid": "first"}, provider.claims()]
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    signature = hmac.digest(secret, signed, "sha256")
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


REFUSED = {
    "another audience": (lambda provider: provider.token(aud="billing"), "E_TOKEN_AUDIENCE"),
    "no audience": (lambda provider: provider.token(aud=None), "E_TOKEN_INVALID"),
    "expired": (lambda provider: provider.token(exp=time.time() - 60), "E_TOKEN_EXPIRED"),
    "without an end": (lambda provider: provider.token(exp=None), "E_TOKEN_INVALID"),
    "not valid yet": (lambda provider: provider.token(nbf=time.time() + 60), "E_TOKEN_EARLY"),
    "a forged signature": (forged, "E_TOKEN_INVALID"),
    "a key that is not published": (
        lambda provider: provider.token(kid="other", key=rsa.generate_private_key(65537, 2048)),
        "E_TOKEN_KEY",
    ),
    "a shared secret of the key set": (
        lambda provider: provider.token(kid="shared", algorithm="HS256", key="\0\0\0" * 16),
        "E_TOKEN_KEY",
    ),
    "another algorithm than the key's": (confused, "E_TOKEN_INVALID"),
    "no signature": (lambda provider: provider.token(algorithm="none", key=""), "E_TOKEN_INVALID"),
    "no group with a role": (lambda provider: provider.token(groups=["guests"]), "E_ROLE"),
    "groups of another kind": (lambda provider: provider.token(groups={"traders": 1}), "E_ROLE"),
    "somebody unknown": (lambda provider: provider.token(sub="mallory"), "E_PRINCIPAL_UNKNOWN"),
    "a reserved name": (lambda provider: provider.token(sub="System"), "E_PRINCIPAL_UNKNOWN"),
    "a name that no principal can have": (
        lambda provider: provider.token(sub="a b\n"),
        "E_PRINCIPAL_UNKNOWN",
    ),
    "another issuer": (lambda provider: provider.token(iss="https://elsewhere"), "E_TOKEN_INVALID"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_token_that_is_not_the_providers_for_us_is_refused(
    gateway: Gateway, provider: Provider, case: str
) -> None:
    make, code = REFUSED[case]
    assert gateway.refused(make(provider)) == code


def test_a_key_is_rotated_without_a_restart_and_the_old_one_is_refused(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "_PAUSE_S", 0.0)
    old = provider.token()
    assert gateway.caller(old).subject == "ana"
    provider.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    provider.listed = ["second"]
    assert gateway.caller(provider.token("second", "ES256")).subject == "ana"
    assert gateway.refused(old) == "E_TOKEN_KEY"
    assert gateway.tokens.known_caller(old) is None


def test_a_withdrawn_key_is_refused_once_its_key_set_is_old(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = provider.token()
    assert gateway.caller(token).subject == "ana"
    provider.keys["second"] = ec.generate_private_key(ec.SECP256R1())
    provider.listed = ["second"]
    monkeypatch.setattr(oidc, "_FRESH_S", 0.0)
    monkeypatch.setattr(oidc, "_PAUSE_S", 0.0)
    assert gateway.tokens.known_caller(token) is None
    assert gateway.refused(token) == "E_TOKEN_KEY"


def test_forged_key_ids_cost_the_provider_one_read(gateway: Gateway, provider: Provider) -> None:
    assert gateway.caller(provider.token()).subject == "ana"
    for number in range(20):
        kid = f"forged-{number}"
        provider.keys[kid] = provider.keys["first"]
        assert gateway.refused(provider.token(kid)) == "E_TOKEN_KEY"
    assert provider.reads == 1


def test_a_provider_that_is_away_stops_nobody_whose_key_is_known(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gateway.caller(provider.token()).subject == "ana"
    monkeypatch.setattr(oidc, "_FRESH_S", 0.0)
    monkeypatch.setattr(oidc, "_PAUSE_S", 0.0)
    provider.metadata = {}
    assert gateway.caller(provider.token()).subject == "ana"
    monkeypatch.setattr(oidc, "_RETAINED_S", 0.0)
    assert gateway.refused(provider.token()) == "E_UNAVAILABLE"


def test_a_key_that_the_provider_withdrew_is_refused_as_soon_as_it_answers(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = provider.token()
    assert gateway.caller(token).subject == "ana"
    monkeypatch.setattr(oidc, "_FRESH_S", 0.0)
    monkeypatch.setattr(oidc, "_PAUSE_S", 0.0)
    provider.listed = []
    assert gateway.refused(token) == "E_TOKEN_KEY"


def test_a_provider_that_answers_byte_by_byte_holds_nobody_for_long(
    gateway: Gateway, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody waited for its whole answer, also those whose key was known."""
    known = provider.token()
    provider.keys["new"] = provider.keys["first"]
    gateway.caller(known)
    monkeypatch.setattr(oidc, "_FRESH_S", 0.0)
    provider.drips = True

    def within(limit_s: float, *tokens: str) -> list[str]:
        async def run() -> list[str]:
            gateway.tokens._provider._tried_at = float("-inf")  # type: ignore[union-attr]  # it is time to read
            async with asyncio.timeout(limit_s):
                asked = (gateway.tokens.caller(token) for token in tokens)
                found = await asyncio.gather(*asked, return_exceptions=True)
            return [item.code if isinstance(item, QmtlError) else item.subject for item in found]  # type: ignore[union-attr]

        return asyncio.run(run())

    monkeypatch.setattr(oidc, "_READ_S", 60.0)
    assert within(15.0, *(provider.token(jti=str(number)) for number in range(5))) == ["ana"] * 5
    monkeypatch.setattr(oidc, "_READ_S", 0.5)
    assert within(15.0, provider.token("new")) == ["E_TOKEN_KEY"]


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://another"},
        {"jwks_uri": "http://elsewhere/keys"},
        {"jwks_uri": "file:///etc/passwd"},
    ],
)
def test_metadata_that_leads_elsewhere_is_not_followed(
    gateway: Gateway, provider: Provider, metadata: dict[str, str]
) -> None:
    provider.metadata |= metadata
    with capture_logs() as logs:
        assert gateway.refused(provider.token()) == "E_UNAVAILABLE"
    (line,) = logs
    assert "calls itself" in line["why"] or "no https address" in line["why"], line
    assert provider.reads == 0


def test_a_disabled_principal_and_a_revoked_token_are_refused_at_once(
    gateway: Gateway, provider: Provider
) -> None:
    token, other = provider.token(), provider.token(jti="2")
    revoked = gateway.caller(token).token_id
    gateway.caller(other)
    gateway.store.revoke(revoked, "olga")
    assert gateway.refused(token) == "E_TOKEN_REVOKED"
    assert gateway.caller(other).subject == "ana"
    gateway.principals.disable("ana", "olga")
    assert gateway.refused(other) == "E_TOKEN_REVOKED"
    assert gateway.refused(provider.token(jti="3")) == "E_PRINCIPAL_DISABLED"


def padded(token: str) -> str:
    """Write the signature of a token with the padding of Base64."""
    return token + "=" * (-len(token.rpartition(".")[2]) % 4)


def mirrored(token: str) -> str:
    """Sign as (r, n − s): for an elliptic curve of order n that is a valid signature as well."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    signed, _, signature = token.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    other = raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big")
    return f"{signed}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}"


@pytest.mark.parametrize(("algorithm", "again"), [("RS256", padded), ("ES256", padded), ("ES256", mirrored)])
def test_a_revoked_token_stays_revoked_however_its_signature_is_written(
    gateway: Gateway, provider: Provider, algorithm: str, again: Callable[[str], str]
) -> None:
    kid = "first"
    if algorithm == "ES256":
        provider.keys[kid := "curve"] = ec.generate_private_key(ec.SECP256R1())
        provider.listed.append(kid)
    revoked, ended = (provider.token(kid, algorithm, jti=name) for name in ("revoked", "ended"))
    token_id = gateway.caller(revoked).token_id
    assert gateway.caller(again(revoked)).token_id == token_id
    gateway.caller(ended)
    gateway.store.revoke(token_id, "olga")
    assert gateway.refused(again(revoked)) == "E_TOKEN_REVOKED"
    gateway.principals.disable("ana", "olga")
    gateway.principals.add("ana", "olga")
    assert gateway.refused(again(ended)) == "E_TOKEN_REVOKED"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"issuer": "http://idp.example"}, "no https address"),
        ({"issuer": "https://idp.example", "audience": ""}, "needs audience and roles"),
        ({"roles": {"traders": {"equities": "king"}}}, "king"),
    ],
)
def test_settings_that_would_verify_nothing_are_refused(fields: dict[str, Any], said: str) -> None:
    good = {"issuer": "https://idp.example", "audience": AUDIENCE, "roles": ROLES}
    with pytest.raises(ValidationError, match=said):
        OidcSettings.model_validate({**good, **fields})
