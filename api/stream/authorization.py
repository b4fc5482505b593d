"""The authorization of one open stream: its token's claims, their end, and revocation."""

import time

from activities.access.sql import TO_GET_ONE
from api.auth.claims import StreamClaims
from api.auth.tokens import Tokens
from qmtl_sdk.contracts.errors import QmtlError

_SAME_SUBSCRIPTION = "refresh with a token of the same subscription"


class StreamAuthorization:
    """What a stream may read, and until when."""

    __slots__ = ("_claims", "_expires_at", "_revoked", "_tokens")

    def __init__(self, tokens: Tokens, revoked: set[str]) -> None:
        """`revoked`: ids of revoked tokens, which the Gateway keeps up to date while a stream is open."""
        self._tokens = tokens
        self._revoked = revoked
        self._claims: StreamClaims | None = None
        self._expires_at = 0.0

    @property
    def claims(self) -> StreamClaims:
        """The claims of the first accepted token."""
        assert self._claims is not None  # a stream is served only after its hello was accepted
        return self._claims

    @property
    def expires_in_s(self) -> float:
        """Seconds until the newest token expires."""
        return self._expires_at - time.time()

    async def accept(self, token: str) -> None:
        """Continue under this token. Raises QmtlError where it is invalid or is for another subscription."""
        claims = await self._tokens.stream(token)
        if self._claims is not None:
            _require_same_subscription(self._claims, claims)
            claims = claims.model_copy(update={"topics": self._claims.topics})
        self._claims = claims
        self._expires_at = claims.expires_at

    def require_valid(self) -> None:
        """Raise QmtlError: E_TOKEN_EXPIRED, or E_TOKEN_REVOKED where the token behind it was revoked."""
        if self.expires_in_s < 0:
            raise QmtlError(
                "E_TOKEN_EXPIRED",
                "the stream's token has expired",
                "refresh it on the open socket before it does",
            )
        if self.claims.parent in self._revoked:
            raise QmtlError(
                "E_TOKEN_REVOKED",
                "the token has been revoked",
                TO_GET_ONE,
            )


def _require_same_subscription(held: StreamClaims, claims: StreamClaims) -> None:
    if claims.world_id != held.world_id:
        raise QmtlError(
            "E_WORLD_FORBIDDEN",
            f"the stream is of world {held.world_id}, the token is for {claims.world_id}",
            "open another stream for another world",
        )
    if claims.strategy_id != held.strategy_id:
        raise QmtlError("E_STRATEGY_FORBIDDEN", "the token is for another strategy", _SAME_SUBSCRIPTION)
    if not set(held.topics) <= set(claims.topics):
        raise QmtlError("E_TOPIC_FORBIDDEN", "the token lacks topics of the stream", _SAME_SUBSCRIPTION)
    if claims.subject != held.subject:
        raise QmtlError("E_TOKEN_INVALID", "the token is another caller's", _SAME_SUBSCRIPTION)
