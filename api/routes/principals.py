"""Principals: register, list, disable."""

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import EVERY_WORLD, Principal, PrincipalRequest, Role

router = APIRouter(prefix="/principals", tags=["principals"], route_class=GuardedRoute)


@router.post("", status_code=201, summary="Register a principal, who may then have tokens")
def add(body: PrincipalRequest, state: State, caller: CurrentCaller) -> Principal:
    """Idempotent. One that was disabled is enabled again; its old tokens stay revoked."""
    caller.require_role(EVERY_WORLD, Role.OWNER)
    return state.stores.principals.add(body.name, caller.subject)


@router.get("", summary="List the principals")
def list_principals(state: State, caller: CurrentCaller) -> list[Principal]:
    caller.require_role(EVERY_WORLD, Role.OPERATOR)
    return state.stores.principals.all()


@router.post("/{name}/disable", summary="Disable a principal, and revoke all its tokens")
def disable(name: str, state: State, caller: CurrentCaller) -> Principal:
    caller.require_role(EVERY_WORLD, Role.OWNER)
    return state.stores.principals.disable(name, caller.subject)
