"""Tokens: give, list, take back; and the keys that sign them."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.auth.access import Asker, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import NewToken, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError

router = APIRouter(prefix="/tokens", tags=["tokens"], route_class=GuardedRoute)


@router.post("", status_code=201, summary="A new token; it is shown this once")
def create(body: TokenRequest, state: State, caller: Asker) -> NewToken:
    """No one grants more than they have."""
    if not caller.covers(body.grants):
        raise QmtlError(
            "E_GRANT",
            f"{caller.subject} can't grant more than they have",
            "ask for a lower role or fewer worlds, or ask an owner",
        )
    return state.tokens.issue(body, caller.subject)


@router.get("", summary="The tokens that the caller could have made")
def list_tokens(state: State, caller: Asker) -> list[TokenInfo]:
    return [token for token in state.stores.tokens.all() if caller.covers(token.grants)]


@router.delete(
    "/{token_id}", summary="Take a token back: requests are refused at once, streams closed within seconds"
)
def revoke(token_id: str, state: State, caller: Asker) -> TokenInfo:
    found = state.stores.tokens.find(token_id)
    if found is not None and not caller.covers(found.grants):
        raise QmtlError(
            "E_GRANT", f"{caller.subject} can't take back a token of a higher role", "ask an owner"
        )
    return state.stores.tokens.revoke(token_id, caller.subject)


@router.post("/rotate", summary="Sign with a new key from now on")
def rotate(
    state: State,
    caller: Asker,
    overlap_s: Annotated[
        int, Query(ge=0, le=366 * 86_400, description="how long tokens of the old keys stay good")
    ] = 30 * 86_400,
) -> dict[str, Any]:
    caller.in_world("*", Role.OWNER)
    state.keys.rotate(timedelta(seconds=overlap_s))
    return state.tokens.jwks()
