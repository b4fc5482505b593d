"""Bearer tokens: JWTs signed with EdDSA.

There are two kinds, which differ in their audience: `gateway` for requests, `controlbus` for one stream. No
claim is used before the signature has been verified, with EdDSA alone, against the key that `kid` names. A
request's token must be in the register and not revoked. A stream's token is valid for minutes, and only while
the token that it was requested with is.
"""

import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from pydantic import ValidationError

from activities.access.sql import SqlTokenStore, require_good
from api.auth.keys import KeyRing, SigningKey
from api.auth.register import TokenRegister
from qmtl_sdk.contracts.access import EVERY_WORLD, Caller, NewToken, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.stream import Subscribe

GATEWAY = "gateway"
"""Audience of tokens for requests."""
CONTROLBUS = "controlbus"
"""Audience of tokens for streams."""
ALGORITHM = "EdDSA"
LEEWAY_S = 10.0
"""Seconds by which the clocks of two hosts may differ."""
LOCAL_LIFETIME_S = 365 * 86_400
"""Seconds that the token of the person who started the stack is valid."""
LOCAL_RENEW_S = 30 * 86_400
"""Seconds before its end at which that token is replaced."""
_MAX_VERIFIED = 1000
"""Verified tokens that are remembered."""
_REQUIRED = ["exp", "nbf", "iss", "aud", "sub", "jti"]
_REQUIRED_BY_AUDIENCE = {GATEWAY: ("grants",), CONTROLBUS: ("world_id", "topics", "parent")}

Claims = dict[str, Any]
"""The claims of a token. (Any: JSON; each is validated where it is used.)"""


@dataclass
class _Verified:
    """A token whose signature was verified: its key, its claims, and the caller once their form was checked.

    A verified signature stays valid. Whether the key is accepted, the token is in its time and is not revoked
    is checked at each request.
    """

    kid: str
    claims: Claims
    caller: Caller | None = None


class StreamClaims(Model):
    """What a stream's token allows: these topics of this world, to this caller."""

    subject: str
    parent: str
    world_id: str
    strategy_id: str
    topics: tuple[str, ...]
    expires_at: float


class Tokens:
    """Issues and verifies the tokens of an installation."""

    def __init__(self, keys: KeyRing, store: SqlTokenStore, store_id: str) -> None:
        self._keys = keys
        self._store = store
        self._issuer = f"qmtl:{store_id}"
        self._register = TokenRegister(store)
        self._verified = OrderedDict[tuple[str, str], _Verified]()
        """By token and audience; the one that was used last is at the end."""

    def issue(self, request: TokenRequest, created_by: str) -> NewToken:
        """Create a token and add it to the register."""
        now = datetime.now(UTC)
        info = TokenInfo(
            token_id=uuid.uuid4().hex,
            subject=request.subject,
            grants=request.grants,
            created_by=created_by,
            created_at=now,
            expires_at=now + timedelta(seconds=request.expires_in_s),
        )
        token = self._sign(
            {"aud": GATEWAY, "sub": info.subject, "jti": info.token_id, "grants": info.json_dict()["grants"]},
            request.expires_in_s,
        )
        self._store.add(info)
        return NewToken(token=token, info=info)

    async def caller(self, token: str) -> Caller:
        """Return the caller whose token it is.

        Raises QmtlError: E_TOKEN_INVALID, E_TOKEN_KEY, E_TOKEN_EXPIRED, E_TOKEN_EARLY, E_TOKEN_AUDIENCE,
        E_TOKEN_REVOKED.
        """
        found = self._verify_once(token, GATEWAY)
        if found.caller is None:
            claims = found.claims
            try:
                found.caller = Caller(subject=claims["sub"], token_id=claims["jti"], grants=claims["grants"])
            except ValidationError as error:
                raise _invalid("its claims are malformed") from error
        require_good(await self._register.state(found.caller.token_id))
        return found.caller

    def known_caller(self, token: str) -> Caller | None:
        """Return the caller of a token that `caller` accepted before; None where only `caller` can tell.

        Its key is still accepted, and it is in its time. Whether it has been revoked is another question,
        which an order asks in the fence's transaction.
        """
        found = self._accepted(token, GATEWAY)
        return found.caller if found is not None else None

    def issue_stream(self, caller: Caller, wanted: Subscribe, lifetime_s: float) -> str:
        """Create a token for a stream. It is not in the register: it depends on the caller's own."""
        claims = {
            "aud": CONTROLBUS,
            "sub": caller.subject,
            "jti": uuid.uuid4().hex,
            "parent": caller.token_id,
            "world_id": wanted.world_id,
            "strategy_id": wanted.strategy_id,
            "topics": wanted.topics,
        }
        return self._sign(claims, lifetime_s)

    async def stream(self, token: str) -> StreamClaims:
        """Return what a stream's token allows. Raises QmtlError as `caller` does."""
        claims = self._verify_once(token, CONTROLBUS).claims
        try:
            found = StreamClaims(
                subject=claims["sub"],
                parent=claims["parent"],
                world_id=claims["world_id"],
                strategy_id=claims.get("strategy_id", ""),
                topics=claims["topics"],
                expires_at=float(claims["exp"]),
            )
        except (ValidationError, ValueError, TypeError) as error:
            raise _invalid("its claims are malformed") from error
        require_good(await self._register.state(found.parent))
        return found

    def revoked(self) -> set[str]:
        """Return the ids of the revoked tokens under which a stream may still be open."""
        return self._store.revoked()

    def jwks(self) -> dict[str, Any]:
        """Return the public keys as a JWK set. (Any: JSON.)"""
        return {"keys": [key.jwk() for key in self._keys.accepted()]}

    def issue_local(self, role: Role, subject: str, current: str | None) -> str | None:
        """Return a token in every world for the person who started the stack.

        None where the `current` one is valid for another month. An expired or revoked token, or one of
        another store, is replaced.
        """
        try:
            if current is not None:
                claims = self._verify_once(current, GATEWAY).claims
                require_good(self._store.states([claims["jti"]])[claims["jti"]])
                if claims["exp"] - datetime.now(UTC).timestamp() > LOCAL_RENEW_S:
                    return None
        except QmtlError:
            pass
        request = TokenRequest(subject=subject, grants={EVERY_WORLD: role}, expires_in_s=LOCAL_LIFETIME_S)
        return self.issue(request, "system").token

    def _sign(self, claims: Claims, lifetime_s: float) -> str:
        now = datetime.now(UTC).timestamp()
        key = self._keys.signing()
        return jwt.encode(
            {**claims, "iss": self._issuer, "iat": int(now), "nbf": int(now), "exp": now + lifetime_s},
            key.private,
            algorithm=ALGORITHM,
            headers={"kid": key.kid},
        )

    def _accepted(self, token: str, audience: str) -> "_Verified | None":
        """Return a token that was verified before, and that its key and its time allow now; else None."""
        found = self._verified.get((token, audience))
        if found is None or self._keys.find(found.kid) is None:
            return None
        now = datetime.now(UTC).timestamp()
        if not found.claims["nbf"] - LEEWAY_S <= now < found.claims["exp"] + LEEWAY_S:
            return None
        self._verified.move_to_end((token, audience))
        return found

    def _verify_once(self, token: str, audience: str) -> "_Verified":
        """Verify a token, its signature only the first time. Raises QmtlError as `caller` does."""
        known = self._accepted(token, audience)
        if known is not None:
            return known
        kid = _kid(token)
        key = self._keys.find(kid)
        if key is None:
            raise QmtlError(
                "E_TOKEN_KEY",
                "the token was signed with a key that this Gateway does not know or no longer accepts",
                "ask for a new token: the keys may have been rotated",
            )
        found = self._verified[token, audience] = _Verified(kid, self._verify(token, key, audience))
        if len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)
        return found

    def _verify(self, token: str, key: SigningKey, audience: str) -> Claims:
        try:
            claims: Claims = jwt.decode(
                token,
                key.public,
                algorithms=[ALGORITHM],
                audience=audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": _REQUIRED},
            )
        except jwt.ExpiredSignatureError as error:
            raise QmtlError(
                "E_TOKEN_EXPIRED", "the token has expired", "ask for a new one: qmtl token create"
            ) from error
        except jwt.ImmatureSignatureError as error:
            raise QmtlError(
                "E_TOKEN_EARLY",
                "the token is not valid yet",
                "wait, or check the clock of the host that made it",
            ) from error
        except jwt.InvalidAudienceError as error:
            raise QmtlError(
                "E_TOKEN_AUDIENCE",
                f"the token is not for {audience}",
                "requests take a token of qmtl token create, streams one of POST /events/subscribe",
            ) from error
        except jwt.InvalidTokenError as error:
            raise _invalid(str(error)) from error
        missing = [name for name in _REQUIRED_BY_AUDIENCE[audience] if name not in claims]
        if missing:
            raise _invalid(f"it has no {missing[0]}")
        return claims


def _kid(token: str) -> str:
    """Return the id of the key that the token names. Raises QmtlError: E_TOKEN_INVALID."""
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as error:
        raise _invalid("it is not a JWT") from error
    if header.get("alg") != ALGORITHM:
        raise _invalid(f"it is signed with {str(header.get('alg'))[:16]!r}, which is not {ALGORITHM}")
    return str(header.get("kid", ""))


def _invalid(why: str) -> QmtlError:
    return QmtlError(
        "E_TOKEN_INVALID", f"the token is not valid: {why}", "use one that qmtl token create printed"
    )
