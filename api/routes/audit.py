"""The audit trail: a world's, and that of what belongs to no world."""

import threading
from typing import Annotated

from fastapi import APIRouter, Query

from activities.retention.audit import AuditPage
from activities.storage.chain import OUTSIDE_WORLDS
from api.auth.access import GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.errors import QmtlError

router = APIRouter(tags=["audit"], route_class=GuardedRoute)

# Verifying reads a whole audit trail: one at a time, so that the threads of requests are left to others.
_VERIFYING = threading.Lock()

_After = Annotated[int, Query(ge=0, lt=2**31)]
_Limit = Annotated[int, Query(ge=1, le=1000)]


@router.get("/worlds/{world_id}/audit", summary="Read a world's audit trail, oldest first")
def world_audit(
    world_id: str, state: State, after: _After = 0, limit: _Limit = 100, verify: bool = False
) -> AuditPage:
    """`verify`: check the hash chain from its first entry; E_AUDIT_BROKEN names the first broken one."""
    state.stores.worlds.world(world_id)
    return _page(state, world_id, after, limit, verify)


@router.get("/audit", summary="Read the audit trail of principals, tokens and archives, oldest first")
def audit(state: State, after: _After = 0, limit: _Limit = 100, verify: bool = False) -> AuditPage:
    """As a world's, of what belongs to no world."""
    return _page(state, OUTSIDE_WORLDS, after, limit, verify)


def _page(state: GatewayState, chain: str, after: int, limit: int, verify: bool) -> AuditPage:
    """Read a page of a chain. Raises QmtlError: E_RATE where another one is being verified."""
    if verify and not _VERIFYING.acquire(blocking=False):
        raise QmtlError(
            "E_RATE", "another audit trail is being verified", "try again in a few seconds", retry_after=5.0
        )
    try:
        return state.stores.audit.page(chain, after, limit, verify)
    finally:
        if verify:
            _VERIFYING.release()
