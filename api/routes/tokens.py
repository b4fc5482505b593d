"""Tokens: create, list, revoke; and rotate the keys that sign them."""

from datetime import timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import EVERY_WORLD, NewToken, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.errors import QmtlError

router = APIRouter(prefix="/tokens", tags=["tokens"], route_class=GuardedRoute)


@router.post("", status_code=201, summary="Create a token; it is shown only once")
def create(body: TokenRequest, state: State, caller: CurrentCaller) -> NewToken:
    """Nobody grants more than they have, and only an owner creates tokens for others.

    One for oneself ends with the token of the request: it expires no later, and is revoked with it.
    """
    if body.subject != caller.subject and not caller.may(Role.OWNER, EVERY_WORLD):
        raise QmtlError(
            "E_GRANT",
            f"{caller.subject} can create tokens for themselves only, not for {body.subject}",
            "an owner creates tokens for others",
        )
    if not caller.covers(body.grants):
        raise QmtlError(
            "E_GRANT",
            f"{caller.subject} can't grant more than they have",
            "ask for a lower role or fewer worlds, or ask an owner",
        )
    mine = state.stores.tokens.find(caller.token_id)
    own = body.subject == caller.subject
    issuers = dict.fromkeys((*(mine.issuers if mine else ()), *(() if own else (caller.subject,))))
    return state.tokens.issue(body, caller.subject, tuple(issuers), mine if own else None)


@router.get("", summary="List the tokens whose grants the caller could give, newest first")
def list_tokens(
    state: State,
    caller: CurrentCaller,
    after: Annotated[
        str | None, Query(description="the id of the token with which the page before ended")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[TokenInfo]:
    return state.stores.tokens.page(lambda token: caller.covers(token.grants), limit, after)


@router.delete(
    "/{token_id}", summary="Revoke a token: requests are refused at once, streams closed within seconds"
)
def revoke(token_id: str, state: State, caller: CurrentCaller) -> TokenInfo:
    found = state.stores.tokens.find(token_id)
    if found is not None and not caller.covers(found.grants):
        raise QmtlError("E_GRANT", f"{caller.subject} can't revoke a token of a higher role", "ask an owner")
    return state.stores.tokens.revoke(token_id, caller.subject)


@router.post("/rotate", summary="Sign tokens with a new key from now on")
def rotate(
    state: State,
    caller: CurrentCaller,
    overlap_s: Annotated[
        int, Query(ge=0, le=366 * 86_400, description="seconds that tokens of earlier keys stay valid")
    ] = 30 * 86_400,
) -> dict[str, Any]:
    caller.require_role("*", Role.OWNER)
    state.keys.rotate(timedelta(seconds=overlap_s))
    return state.tokens.jwks()
