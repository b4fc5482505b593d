"""The session that a request acts in: its id, and the secret from the header."""

from typing import Annotated

from fastapi import Header

from activities.sessions.holder import SessionCaller
from api.auth.access import Caller
from api.state import GatewayState
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.sessions import MAX_SECRET, SESSION_HEADER, SessionInfo

SessionSecret = Annotated[
    str, Header(alias=SESSION_HEADER, max_length=MAX_SECRET, description="the secret of the session's grant")
]


def held_session(session_id: str, state: GatewayState, caller: Caller, secret: str) -> SessionInfo:
    """Return a session in which the caller may act.

    Raises QmtlError: E_SESSION_UNKNOWN, E_WORLD_FORBIDDEN, E_ROLE, E_SESSION_HOLDER.
    """
    found = state.stores.sessions.find(session_id)
    caller.require_role(found.info.world_id, Role.AUTHOR)
    found.require_holder(SessionCaller(caller.subject, secret))
    return found.info
