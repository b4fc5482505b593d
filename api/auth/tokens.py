"""Bearer tokens: JWTs signed with EdDSA.

There are two kinds, which differ in their audience: `gateway` for requests, `controlbus` for one stream. No
claim is used before the signature has been verified, with EdDSA alone, against the key that `kid` names. A
request's token must be in the register and not revoked. Tokens of an identity provider (`oidc`) are added to
the register when they are first used. A stream's token is valid for minutes, and only while the token that it
was requested with is.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt

from activities.access.sql import SqlTokenStore, require_good
from api.auth.claims import ALGORITHM, Claims, StreamClaims, caller_of, key_id, stream_claims
from api.auth.keys import KeyRing, SigningKey
from api.auth.oidc import LEEWAY_S, IdentityProvider, invalid, token_error
from api.auth.register import TokenRegister
from qmtl_sdk.contracts.access import (
    EVERY_WORLD,
    Caller,
    NewToken,
    Role,
    TokenInfo,
    TokenRequest,
    require_principal_name,
)
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.stream import Subscribe

GATEWAY = "gateway"
"""Audience of tokens for requests."""
CONTROLBUS = "controlbus"
"""Audience of tokens for streams."""
SYSTEM = "system"
"""Who creates the tokens of the person who started the stack."""
LOCAL_LIFETIME_S = 365 * 86_400
"""Seconds that the token of the person who started the stack is valid."""
LOCAL_RENEW_S = 30 * 86_400
"""Seconds before its end at which that token is replaced."""
_MAX_VERIFIED = 1000  # tokens that are remembered
_REMEDY = "requests take a token of qmtl token create NAME, streams one of POST /events/subscribe"
_REQUIRED = ["exp", "nbf", "iss", "aud", "sub", "jti"]
_REQUIRED_BY_AUDIENCE = {GATEWAY: ("grants",), CONTROLBUS: ("world_id", "topics", "parent")}


@dataclass
class _Verified:
    """A token whose signature was verified: its key, its claims, and the caller once their form was checked.

    A verified signature stays valid. Whether the key is accepted, the token is in its time and is not revoked
    is checked at each request.
    """

    kid: str
    claims: Claims
    caller: Caller | None = None
    from_provider: bool = False


class Tokens:
    """Issues and verifies the tokens of an installation."""

    def __init__(
        self, keys: KeyRing, store: SqlTokenStore, store_id: str, provider: IdentityProvider | None = None
    ) -> None:
        self._keys = keys
        self._provider = provider
        self._store = store
        self._issuer = f"qmtl:{store_id}"
        self._register = TokenRegister(store)
        self._verified = OrderedDict[tuple[str, str], _Verified]()
        """By token and audience; the one that was used last is at the end."""

    def issue(
        self,
        request: TokenRequest,
        created_by: str,
        issuers: Sequence[str] = (),
        parent: TokenInfo | None = None,
    ) -> NewToken:
        """Create a token of a registered principal. `issuers`: as in `TokenInfo`; `created_by` by default.
        `parent`: the token with which a person issues it to themselves; it ends no later than that.

        Raises QmtlError: E_PRINCIPAL_UNKNOWN, E_PRINCIPAL_DISABLED, E_TOKEN_REVOKED.
        """
        now = datetime.now(UTC)
        end = min([now + timedelta(seconds=request.expires_in_s), *([parent.expires_at] if parent else [])])
        info = TokenInfo(
            token_id=uuid.uuid4().hex,
            subject=request.subject,
            grants=request.grants,
            created_by=created_by,
            issuers=tuple(issuers) or (created_by,),
            parent_id=parent.token_id if parent is not None else "",
            created_at=now,
            expires_at=end,
        )
        token = self._sign(
            {"aud": GATEWAY, "sub": info.subject, "jti": info.token_id, "grants": info.json_dict()["grants"]},
            (end - now).total_seconds(),
        )
        self._store.add(info)
        return NewToken(token=token, info=info)

    async def caller(self, token: str) -> Caller:
        """Return the caller whose token it is.

        Raises QmtlError: E_TOKEN_INVALID, E_TOKEN_KEY, E_TOKEN_EXPIRED, E_TOKEN_EARLY, E_TOKEN_AUDIENCE,
        E_TOKEN_REVOKED. Of an identity provider's token also E_ROLE, E_UNAVAILABLE, E_PRINCIPAL_UNKNOWN,
        E_PRINCIPAL_DISABLED.
        """
        found = self._accepted(token, GATEWAY)
        if found is None and self._provider is not None and self._provider.issued(token):
            found = await self._provided(token, self._provider)
        found = found or self._verify_once(token, GATEWAY)
        if found.caller is None:
            found.caller = caller_of(found.claims)
        require_good(await self._register.state(found.caller.token_id))
        return found.caller

    async def _provided(self, token: str, provider: IdentityProvider) -> "_Verified":
        """Verify a token of the identity provider, and add it to the register, where it can be revoked."""
        kid, claims = await provider.verify(token)
        caller = caller_of({**claims, "jti": _provided_id(token)})
        require_principal_name(caller.subject)
        now = datetime.now(UTC)
        info = TokenInfo(
            **caller.model_dump(),
            created_by=caller.subject,
            issuers=(str(claims["iss"]),),
            created_at=now,
            expires_at=datetime.fromtimestamp(claims["exp"], UTC),
        )
        await asyncio.to_thread(self._store.add, info)
        return self._remember(token, GATEWAY, _Verified(kid, claims, caller, from_provider=True))

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
        found = stream_claims(self._verify_once(token, CONTROLBUS).claims)
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
        another store, is replaced. None too where an owner has disabled the person.
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
        try:
            return self.issue(request, SYSTEM).token
        except QmtlError as error:
            if error.code != "E_PRINCIPAL_DISABLED":
                raise
            return None

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
        if found is None or not self._accepts_key(found):
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
        key = self._keys.find(kid := key_id(token))
        if key is None:
            raise QmtlError(
                "E_TOKEN_KEY",
                "the token was signed with a key that this Gateway does not know or no longer accepts",
                "ask for a new token: the keys may have been rotated",
            )
        return self._remember(token, audience, _Verified(kid, self._verify(token, key, audience)))

    def _accepts_key(self, found: "_Verified") -> bool:
        if found.from_provider:
            return self._provider is not None and self._provider.accepts(found.kid)
        return self._keys.find(found.kid) is not None

    def _remember(self, token: str, audience: str, found: "_Verified") -> "_Verified":
        self._verified[token, audience] = found
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
        except jwt.InvalidTokenError as error:
            raise token_error(
                error, audience, "qmtl token create NAME, or for a stream POST /events/subscribe"
            ) from error
        for name in _REQUIRED_BY_AUDIENCE[audience]:
            if name not in claims:
                raise invalid(f"it has no {name}")
        return claims


def _provided_id(token: str) -> str:
    """Return the id of an identity provider's token: of what was signed.

    One signature can be written in several ways, and each would be another token.
    """
    return f"oidc:{content_hash(token.rpartition('.')[0].encode())}"
