"""Tokens of an identity provider (OpenID Connect), verified by its published keys.

1. The provider's metadata (`ISSUER/.well-known/openid-configuration`) names its key set (JWKS).
2. A token's `kid` names the key. The key's own type decides about the algorithm, never the token's header.
   A key set is read again after `_FRESH_S`, and when a token names a key that it lacks, but not more often
   than every `_PAUSE_S`: forged key ids cost the provider nothing. A key that the provider withdrew is
   refused once its key set has been read again.
3. Issuer, audience and time are checked, and the person's groups give the roles.

A provider that can't be reached leaves the keys of the last key set valid for `_RETAINED_S`. One that is slow
holds nobody whose key is known for longer than `_KNOWN_WAIT_S`: the key set is read beside the requests.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import jwt
import structlog

from activities.settings import OidcSettings, is_private
from qmtl_sdk.contracts.access import Role, higher
from qmtl_sdk.contracts.errors import QmtlError

LEEWAY_S = 10.0
"""Seconds by which the clocks of two hosts may differ."""

# The algorithms of each type of key. Symmetric keys are in no key set: whoever verifies could also sign.
_ALGORITHMS = {
    "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
    "EC": ["ES256", "ES384", "ES512"],
    "OKP": ["EdDSA"],
}
_FRESH_S = 600.0
_PAUSE_S = 10.0
_RETAINED_S = 86_400.0

# Seconds for reading the key set, which end before the next attempt, and for a request whose key is known.
_READ_S = 8.0
_KNOWN_WAIT_S = 1.0

# The bytes of an answer of the provider, and the keys of its key set.
_MAX_ANSWER = 1_000_000
_MAX_KEYS = 100

_REMEDY = "ask the identity provider for a new token; auth.oidc says which issuer and audience it must name"

_log = structlog.get_logger()


class IdentityProvider:
    """Verifies the tokens of one identity provider."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = float("-inf")
        self._tried_at = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    def issued(self, token: str) -> bool:
        """Return whether a token names this provider as its issuer. Nothing of it is verified yet."""
        try:
            claims = jwt.decode(token, options={"verify_signature": False})
        except jwt.InvalidTokenError:
            return False
        return bool(self._settings.issuer) and claims.get("iss") == self._settings.issuer

    def accepts(self, kid: str) -> bool:
        """Return whether a key is in the key set, which was read, or could not be read, not long ago."""
        now = time.monotonic()
        fresh = now - self._read_at < _FRESH_S
        in_vain = now - self._tried_at < _PAUSE_S and now - self._read_at < _RETAINED_S
        return kid in self._keys and (fresh or in_vain)

    async def verify(self, token: str) -> tuple[str, dict[str, Any]]:
        """Return the id of a token's key and its claims, with `grants` by its groups. (Any: JSON.)

        Raises QmtlError: E_TOKEN_INVALID, E_TOKEN_KEY, E_TOKEN_EXPIRED, E_TOKEN_EARLY, E_TOKEN_AUDIENCE,
        E_ROLE, E_UNAVAILABLE.
        """
        try:
            kid = str(jwt.get_unverified_header(token).get("kid", ""))
        except jwt.InvalidTokenError as error:
            raise invalid("it is not a JWT", _REMEDY) from error
        key = await self._key(kid)
        settings = self._settings
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,
                algorithms=_ALGORITHMS[str(key.key_type)],
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iat", "iss", "aud", settings.subject_claim]},
            )
        except jwt.InvalidTokenError as error:
            raise token_error(error, settings.audience, _REMEDY) from error
        subject = claims[settings.subject_claim]
        if not isinstance(subject, str):
            raise invalid(f"its {settings.subject_claim} is not text", _REMEDY)
        claims |= {"sub": subject, "nbf": claims.get("nbf", claims["iat"]), "grants": self._grants(claims)}
        return kid, claims

    def _grants(self, claims: Mapping[str, Any]) -> dict[str, Role]:
        """Return the roles by world of a person's groups. Raises QmtlError (E_ROLE) where there is none."""
        settings = self._settings
        groups = claims.get(settings.roles_claim)
        named = groups if isinstance(groups, list) else [groups]
        grants: dict[str, Role] = {}
        for group in named:
            for world, role in settings.roles.get(group, {}).items() if isinstance(group, str) else ():
                grants[world] = higher(grants.get(world, role), role)
        if not grants:
            raise QmtlError(
                "E_ROLE",
                f"no role belongs to the {settings.roles_claim} of the token",
                "ask whoever keeps auth.oidc.roles, or the identity provider's administrator",
            )
        return grants

    async def _key(self, kid: str) -> jwt.PyJWK:
        """Return a key of the provider. Raises QmtlError: E_TOKEN_KEY, E_UNAVAILABLE."""
        if not self.accepts(kid):
            if self._reading is None and time.monotonic() - self._tried_at > _PAUSE_S:
                self._tried_at = time.monotonic()
                self._reading = asyncio.create_task(self._read())
            if self._reading is not None:
                known = kid in self._keys and time.monotonic() - self._read_at < _RETAINED_S
                await asyncio.wait({self._reading}, timeout=_KNOWN_WAIT_S if known else None)
        if time.monotonic() - self._read_at > _RETAINED_S:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the keys of {self._settings.issuer} can't be read",
                "check auth.oidc.issuer, and that the identity provider answers",
            )
        if kid not in self._keys:
            raise QmtlError(
                "E_TOKEN_KEY",
                f"the token was signed with a key that {self._settings.issuer} does not publish",
                "ask the identity provider for a new token",
            )
        return self._keys[kid]

    async def _read(self) -> None:
        """Read the key set. One that can't be read leaves the present one."""
        issuer = self._settings.issuer.rstrip("/")
        try:
            # A time limit of the client is one for each part of an answer, which may come byte by byte.
            async with (
                asyncio.timeout(_READ_S),
                httpx.AsyncClient(timeout=_READ_S, trust_env=False) as client,
            ):
                metadata = await _json(client, f"{issuer}/.well-known/openid-configuration")
                if metadata["issuer"] != self._settings.issuer:
                    raise ValueError(f"it calls itself {str(metadata['issuer'])[:100]!r}")
                address = str(metadata["jwks_uri"])
                if not is_private(address):
                    raise ValueError(f"its jwks_uri {address[:100]!r} is no https address")
                found = await _json(client, address)
            keys = [_parsed(item) for item in found["keys"][:_MAX_KEYS]]
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, KeyError, TypeError) as error:
            why = str(error) or f"no whole answer within {_READ_S:g} s"
            _log.warning("the keys of the identity provider can't be read", issuer=issuer, why=why)
        else:
            self._keys = {key.key_id: key for key in keys if key is not None and key.key_id}
            self._read_at = time.monotonic()
        finally:
            self._reading = None


def _parsed(item: Mapping[str, Any]) -> jwt.PyJWK | None:
    """Return a public key that signs; None for any other, which a key set may hold as well."""
    if item.get("kty") not in _ALGORITHMS or item.get("use", "sig") != "sig":
        return None
    try:
        return jwt.PyJWK.from_dict(dict(item))
    except (jwt.PyJWTError, ValueError):
        return None


async def _json(client: httpx.AsyncClient, address: str) -> Any:
    """Read a JSON document. (Any: JSON.) Raises httpx.HTTPError, ValueError."""
    body = b""
    async with client.stream("GET", address) as response:
        response.raise_for_status()
        async for part in response.aiter_bytes():
            body += part
            if len(body) > _MAX_ANSWER:
                raise ValueError(f"{address} answers with more than {_MAX_ANSWER} bytes")
    return httpx.Response(200, content=body).json()


def token_error(error: jwt.InvalidTokenError, audience: str, remedy: str) -> QmtlError:
    """Return the error of a token that a library refused. `remedy`: where another one comes from."""
    if isinstance(error, jwt.ExpiredSignatureError):
        return QmtlError("E_TOKEN_EXPIRED", "the token has expired", remedy)
    if isinstance(error, jwt.ImmatureSignatureError):
        return QmtlError(
            "E_TOKEN_EARLY",
            "the token is not valid yet",
            "wait, or check the clock of the host that made it",
        )
    if isinstance(error, jwt.InvalidAudienceError):
        return QmtlError("E_TOKEN_AUDIENCE", f"the token is not for {audience}", remedy)
    return invalid(str(error), remedy)


def invalid(why: str, remedy: str = "use one that qmtl token create NAME printed") -> QmtlError:
    """Return the error of a token that is not valid."""
    return QmtlError("E_TOKEN_INVALID", f"the token is not valid: {why}", remedy)
