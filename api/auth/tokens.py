"""Bearer tokens: JWTs signed with EdDSA. Two kinds, told apart by their audience: `gateway` for requests, `controlbus` for one stream.

Nothing in a token counts before its signature was checked, with the one algorithm that is used here, against the key that its `kid` names. A request's token must
stand in the register and not be taken back; a stream's token lives for minutes and falls with the one that it was got with.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from pydantic import ValidationError

from activities.access.sql import SqlTokenStore, TokenState
from api.auth.keys import KeyRing
from api.auth.register import TokenRegister
from qmtl_sdk.contracts.access import EVERY_WORLD, Caller, NewToken, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.stream import Subscribe

GATEWAY, CONTROLBUS, ALGORITHM = "gateway", "controlbus", "EdDSA"
LEEWAY_S, _REMEMBERED = 10.0, 1000
_REQUIRED = ["exp", "nbf", "iss", "aud", "sub", "jti"]
_OWN = {GATEWAY: ("grants",), CONTROLBUS: ("world_id", "topics", "parent")}


class StreamClaims(Model):
    """What a stream's token allows: these topics of this world, to this caller."""

    subject: str
    parent: str
    world_id: str
    strategy_id: str
    topics: tuple[str, ...]
    expires_at: float


class Tokens:
    def __init__(self, keys: KeyRing, store: SqlTokenStore, store_id: str) -> None:
        self._keys, self._store, self._issuer = keys, store, f"qmtl:{store_id}"
        self._register = TokenRegister(store)
        self._checked: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {}
        """By token and audience: the id of its key, and the claims whose signature was checked; it can't become wrong. Whether the key is believed, the token's time has
        come, and it was not taken back, is asked each time."""

    def issue(self, request: TokenRequest, created_by: str) -> NewToken:
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
        """Who holds it. Raises QmtlError: E_TOKEN_INVALID, E_TOKEN_KEY, E_TOKEN_EXPIRED, E_TOKEN_EARLY, E_TOKEN_AUDIENCE, E_TOKEN_REVOKED."""
        claims = self._claims(token, GATEWAY)
        try:
            caller = Caller(subject=claims["sub"], token_id=claims["jti"], grants=claims["grants"])
        except ValidationError as error:
            raise _invalid("its claims are malformed") from error
        _require_good(await self._register.state(caller.token_id))
        return caller

    def issue_stream(self, caller: Caller, wanted: Subscribe, lifetime_s: float) -> str:
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
        """What it allows. Raises as `caller`."""
        claims = self._claims(token, CONTROLBUS)
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
        _require_good(await self._register.state(found.parent))
        return found

    def revoked(self) -> set[str]:
        return self._store.revoked()

    def jwks(self) -> dict[str, Any]:
        return {"keys": [key.jwk() for key in self._keys.believed()]}

    def local(self, role: Role, subject: str, current: str | None) -> str | None:
        """A token for the person who started the stack, in every world; None where the one that they have is good for another month."""
        try:
            if current is not None:
                claims = self._claims(current, GATEWAY)
                _require_good(self._store.states([claims["jti"]])[claims["jti"]])
                if claims["exp"] - datetime.now(UTC).timestamp() > 30 * 86_400:
                    return None
        except QmtlError:
            pass  # of another store, expired, taken back: a new one takes its place
        return self.issue(
            TokenRequest(subject=subject, grants={EVERY_WORLD: role}, expires_in_s=365 * 86_400), "system"
        ).token

    def _sign(self, claims: dict[str, Any], lifetime_s: float) -> str:
        now = datetime.now(UTC).timestamp()
        key = self._keys.signing()
        return jwt.encode(
            {**claims, "iss": self._issuer, "iat": int(now), "nbf": int(now), "exp": now + lifetime_s},
            key.private,
            algorithm=ALGORITHM,
            headers={"kid": key.kid},
        )

    def _claims(self, token: str, audience: str) -> dict[str, Any]:
        kid, known = self._checked.get((token, audience)) or (_kid(token), None)
        key = self._keys.find(kid)
        if key is None:
            raise QmtlError(
                "E_TOKEN_KEY",
                "the token was signed with a key that this Gateway does not know, or no longer believes",
                "ask for a new token: the keys may have been rotated",
            )
        if (
            known is not None
            and known["nbf"] - LEEWAY_S <= datetime.now(UTC).timestamp() < known["exp"] + LEEWAY_S
        ):
            return known
        try:
            claims: dict[str, Any] = jwt.decode(
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
                "E_TOKEN_EARLY", "the token is not valid yet", "wait, or check the clock of who made it"
            ) from error
        except jwt.InvalidAudienceError as error:
            raise QmtlError(
                "E_TOKEN_AUDIENCE",
                f"the token is for something else than {audience}",
                "requests take a token of qmtl token create, streams one of POST /events/subscribe",
            ) from error
        except jwt.InvalidTokenError as error:
            raise _invalid(str(error)) from error
        missing = [name for name in _OWN[audience] if name not in claims]
        if missing:
            raise _invalid(f"it has no {missing[0]}")
        if len(self._checked) >= _REMEMBERED:
            self._checked.clear()
        self._checked[token, audience] = (kid, claims)
        return claims


def _kid(token: str) -> str:
    """The key that the token says it was signed with. Raises QmtlError (E_TOKEN_INVALID)."""
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as error:
        raise _invalid("it is not a JWT") from error
    if header.get("alg") != ALGORITHM:
        raise _invalid(f"it is signed with {str(header.get('alg'))[:16]!r}, which is not {ALGORITHM}")
    return str(header.get("kid", ""))


def _require_good(state: TokenState) -> None:
    if state != "good":
        raise QmtlError(
            "E_TOKEN_REVOKED",
            "the token was taken back" if state == "revoked" else "the token is not in the register",
            "ask an operator for a new one: qmtl token create",
        )


def _invalid(why: str) -> QmtlError:
    return QmtlError(
        "E_TOKEN_INVALID", f"the token is not valid: {why}", "use one that qmtl token create printed"
    )
