"""What a token's claims say, once its signature was verified."""

from typing import Any

import jwt
from pydantic import ValidationError

from api.auth.oidc import invalid
from qmtl_sdk.contracts.access import Caller
from qmtl_sdk.contracts.model import Model

ALGORITHM = "EdDSA"
"""How QMTL signs its tokens."""

Claims = dict[str, Any]
"""The claims of a token. (Any: JSON; each is validated where it is used.)"""


class StreamClaims(Model):
    """What a stream's token allows: these topics of this world, to this caller."""

    subject: str
    parent: str
    world_id: str
    strategy_id: str
    topics: tuple[str, ...]
    expires_at: float


def stream_claims(claims: Claims) -> StreamClaims:
    """Return what the claims of a stream's token allow. Raises QmtlError (E_TOKEN_INVALID)."""
    try:
        return StreamClaims(
            subject=claims["sub"],
            parent=claims["parent"],
            world_id=claims["world_id"],
            strategy_id=claims.get("strategy_id", ""),
            topics=claims["topics"],
            expires_at=float(claims["exp"]),
        )
    except (ValidationError, ValueError, TypeError) as error:
        raise invalid("its claims are malformed") from error


def caller_of(claims: Claims) -> Caller:
    """Return the caller that claims describe. Raises QmtlError (E_TOKEN_INVALID)."""
    try:
        return Caller(subject=claims["sub"], token_id=claims["jti"], grants=claims["grants"])
    except ValidationError as error:
        raise invalid("its claims are malformed") from error


def key_id(token: str) -> str:
    """Return the id of the key that the token names. Raises QmtlError: E_TOKEN_INVALID."""
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError as error:
        raise invalid("it is not a JWT") from error
    if header.get("alg") != ALGORITHM:
        raise invalid(f"it is signed with {str(header.get('alg'))[:16]!r}, which is not {ALGORITHM}")
    return str(header.get("kid", ""))
