"""Sessions of running strategies: open, renew, list, end."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from activities.fence.cache_hits import CacheHits
from activities.sessions.holder import SessionCaller
from activities.submissions.context import SHADOW
from api.auth.access import CurrentCaller, GuardedRoute
from api.routes.own_nodes import require_own_nodes
from api.routes.session_secret import SessionSecret, held_session
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import EVERY_WORLD, Role
from qmtl_sdk.contracts.domains import ComputeContext, DataScope, Domain, resolve_context, stage_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenId, FlattenRequest
from qmtl_sdk.contracts.identity import compute_key
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.sessions import (
    SessionAck,
    SessionAcked,
    SessionGrant,
    SessionHeartbeat,
    SessionInfo,
    SessionLease,
    SessionOpen,
)
from qmtl_sdk.contracts.submission import QueueTarget

router = APIRouter(prefix="/sessions", tags=["sessions"], route_class=GuardedRoute)


@router.post("", status_code=201, summary="Open a session: a lease that lets a strategy run")
def open_session(wanted: SessionOpen, state: State, caller: CurrentCaller) -> SessionGrant:
    """Open a session for a strategy that is active in dryrun or live.

    `shadow`: for any strategy that was submitted; takes an operator.
    """
    caller.require_role(wanted.world_id, Role.AUTHOR)
    context = _context(wanted, state)
    if wanted.shadow and not caller.may(Role.OPERATOR, wanted.world_id):
        raise QmtlError(
            "E_SHADOW",
            "only an operator may run in the shadow domain",
            "run without shadow, or ask an operator",
        )
    dag = state.stores.graph.dag(wanted.strategy_id)
    domain = context.execution_domain.value
    run = state.stores.runs.newest_run(wanted.strategy_id, wanted.world_id)
    # Before its queues are looked up: from then on none of them is dropped.
    opened = state.stores.sessions.open(wanted, run.name if run else "", domain, caller.subject)
    topics = state.stores.graph.ensure_queues(wanted.world_id, domain, dag, caller.subject)
    # Without as_of: each bar carries its time, and a reopened session must give bars the same keys.
    keys = {
        node_id: compute_key(node_id, wanted.world_id, domain, "", context.partition) for node_id in topics
    }
    queue_map = {
        node_id: QueueTarget(topic=topic, compute_key=keys[node_id], reused=True)
        for node_id, topic in topics.items()
    }
    return SessionGrant(
        session_id=opened.info.session_id,
        secret=opened.secret,
        world_id=wanted.world_id,
        strategy_id=wanted.strategy_id,
        context=context,
        queue_map=queue_map,
        history_keys={
            node_id: compute_key(node_id, wanted.world_id, domain, context.as_of or "", context.partition)
            for node_id in topics
        },
        lease_s=state.stores.sessions.lease_s,
        now=datetime.now(UTC),
    )


@router.get("", summary="List sessions, newest first")
def list_sessions(
    state: State,
    caller: CurrentCaller,
    world_id: Annotated[str | None, Query(max_length=64, description="only this world")] = None,
    ended: Annotated[bool, Query(description="include sessions that have ended")] = False,
) -> list[SessionInfo]:
    if world_id is not None:
        caller.require_role(world_id, Role.READER)
        state.stores.worlds.world(world_id)
    elif not caller.may(Role.READER, EVERY_WORLD):
        worlds = [world for world in caller.grants if caller.may(Role.READER, world)]
        return state.stores.sessions.of_worlds(worlds, ended)
    return state.stores.sessions.all(world_id, ended)


@router.post("/{session_id}/heartbeat", summary="Renew a session's lease and report its state")
def heartbeat(
    session_id: str, body: SessionHeartbeat, state: State, caller: CurrentCaller, secret: SessionSecret = ""
) -> SessionLease:
    held = held_session(session_id, state, caller, secret)
    require_own_nodes(state.stores, held.strategy_id, body.cross_context_hits)
    found = state.stores.sessions.heartbeat(session_id, body)  # refuses a session that has ended
    # A strategy whose cache mixes contexts must not trade.
    if body.cross_context_hits:
        hits = CacheHits(session_id, held.world_id, held.strategy_id, body.cross_context_hits)
        state.stores.cache_hits.halt(hits, caller.subject)
    return SessionLease(session_id=session_id, expires_at=found.expires_at, now=datetime.now(UTC))


@router.post("/{session_id}/ack", summary="Acknowledge a freeze or unfreeze by its sequence")
def ack(
    session_id: str, body: SessionAck, state: State, caller: CurrentCaller, secret: SessionSecret = ""
) -> SessionAcked:
    found = held_session(session_id, state, caller, secret)
    return SessionAcked(
        in_time=state.stores.apply_acks.ack(found.world_id, body.sequence, session_id, "session")
    )


@router.delete("/{session_id}", summary="End a session; its orders are refused from then on")
async def end(
    session_id: str,
    state: State,
    caller: CurrentCaller,
    secret: SessionSecret = "",
    reason: Annotated[str, Query(max_length=MAX_REASON)] = "stopped",
    flatten: Annotated[
        FlattenId | None, Query(description="close what it holds, as a request to flatten of this id")
    ] = None,
) -> SessionInfo:
    """An operator may end any session, without its secret. To flatten takes an operator."""
    found = await asyncio.to_thread(state.stores.sessions.find, session_id)
    caller.require_role(found.info.world_id, Role.AUTHOR if flatten is None else Role.OPERATOR)
    if not caller.may(Role.OPERATOR, found.info.world_id):
        found.require_holder(SessionCaller(caller.subject, secret))
    ended = await asyncio.to_thread(state.stores.sessions.end, session_id, reason, caller.subject)
    if flatten is not None:
        request = FlattenRequest(flatten_id=flatten, strategy=ended.strategy_id, reason=reason)
        await asyncio.to_thread(state.stores.flattens.request, ended.world_id, request, caller.subject)
    return ended


def _context(wanted: SessionOpen, state: GatewayState) -> ComputeContext:
    """Decide where the strategy runs, from its activation.

    Raises QmtlError: E_WORLD_UNKNOWN, and E_SESSION_INACTIVE where it is not active in dryrun or live.
    """
    world = state.stores.worlds.world(wanted.world_id)
    now = datetime.now(UTC)
    activation = next(iter(state.stores.fence.activations(wanted.world_id, wanted.strategy_id)), None)
    run = state.stores.runs.newest_run(wanted.strategy_id, wanted.world_id)
    mode = activation.effective_mode if activation else None
    context = resolve_context(
        DataScope(
            wanted.world_id,
            as_of=world.now(now).isoformat(),
            dataset_fingerprint=run.context.dataset_fingerprint if run else None,
            clock=run.context.clock if run else None,
        ),
        SHADOW if wanted.shadow else mode,
        # An activation is valid until it changes. The session's gate and the fence check the decision's age.
        decided_at=now,
        now=now,
        allow_live=world.spec.allow_live,
    )
    if wanted.shadow:
        return context
    if (
        activation is None
        or not activation.active  # one that is halted may run: its gate is closed until it is resumed
        or context.execution_domain not in (Domain.DRYRUN, Domain.LIVE)
    ):
        why = (
            "has not judged it"
            if activation is None
            else f"has it {'active' if activation.active else 'not active'} in {stage_of(mode)}"
        )
        closed = f", which is closed by {context.downgrade_reason.value}" if context.downgrade_reason else ""
        raise QmtlError(
            "E_SESSION_INACTIVE",
            f"the strategy is not active in dryrun or live: world {wanted.world_id} {why}{closed}",
            f"submit it; qmtl world explain {wanted.world_id} STRATEGY shows what stops it",
        )
    return context
