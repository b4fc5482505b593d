"""Running strategies: open, keep, list, end."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query

from activities.submissions.context import SHADOW
from api.auth.access import Asker, GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import ComputeContext, DataScope, Domain, resolve_context
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import compute_key
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


@router.post("", status_code=201, summary="Run a strategy: a lease on its world")
def open_session(wanted: SessionOpen, state: State, caller: Asker) -> SessionGrant:
    """Only for a strategy that the world has switched on for paper or live; `shadow` for any that it knows, by an operator."""
    caller.in_world(wanted.world_id, Role.AUTHOR)
    context = _context(wanted, state)
    if wanted.shadow and not caller.may(Role.OPERATOR, wanted.world_id):
        raise QmtlError(
            "E_SHADOW",
            "only an operator can ask for the shadow domain",
            "run without shadow, or ask an operator",
        )
    dag = state.stores.graph.dag(wanted.strategy_id)
    domain = context.execution_domain.value
    topics = state.stores.graph.ensure_queues(wanted.world_id, domain, dag, caller.subject)
    run = state.stores.runs.newest_run(wanted.strategy_id, wanted.world_id)
    found = state.stores.sessions.open(wanted, run.name if run else "", domain, caller.subject)
    # No as_of: a bar says itself when it is, and a session that is started again must give its bars the same keys.
    keys = {
        node_id: compute_key(node_id, wanted.world_id, domain, "", context.partition) for node_id in topics
    }
    queue_map = {
        node_id: QueueTarget(topic=topic, compute_key=keys[node_id], reused=True)
        for node_id, topic in topics.items()
    }
    return SessionGrant(
        session_id=found.session_id,
        world_id=found.world_id,
        strategy_id=found.strategy_id,
        context=context,
        queue_map=queue_map,
        history_keys={
            node_id: compute_key(node_id, wanted.world_id, domain, context.as_of or "", context.partition)
            for node_id in topics
        },
        lease_s=state.stores.sessions.lease_s,
        now=datetime.now(UTC),
    )


@router.get("", summary="Sessions, newest first")
def list_sessions(
    state: State,
    caller: Asker,
    world_id: Annotated[str | None, Query(max_length=64, description="of one world")] = None,
    ended: Annotated[bool, Query(description="those that have ended too")] = False,
) -> list[SessionInfo]:
    if world_id is not None:
        caller.in_world(world_id, Role.READER)
        state.stores.worlds.world(world_id)
    return [
        item for item in state.stores.sessions.all(world_id, ended) if caller.may(Role.READER, item.world_id)
    ]


@router.post("/{session_id}/heartbeat", summary="Keep the lease, and say how it is")
def heartbeat(session_id: str, beat: SessionHeartbeat, state: State, caller: Asker) -> SessionLease:
    world_id = state.stores.sessions.find(session_id).world_id
    caller.in_world(world_id, Role.AUTHOR)
    if (
        beat.cross_context_cache_hits
    ):  # its objective is 0: what computes on another context's outputs must not trade
        state.stores.fence.halt(
            world_id,
            "the Gateway",
            f"session {session_id[:8]} had {beat.cross_context_cache_hits} cache hit(s) from another context",
        )
    return SessionLease(
        session_id=session_id,
        expires_at=state.stores.sessions.heartbeat(session_id, beat).expires_at,
        now=datetime.now(UTC),
    )


@router.post("/{session_id}/ack", summary="Say that a freeze or unfreeze was heard of, by its sequence")
def ack(session_id: str, body: SessionAck, state: State, caller: Asker) -> SessionAcked:
    found = state.stores.sessions.find(session_id)
    caller.in_world(found.world_id, Role.AUTHOR)
    return SessionAcked(
        in_time=state.stores.apply_acks.ack(found.world_id, body.sequence, session_id, "session")
    )


@router.delete("/{session_id}", summary="End a session: its gate closes")
async def end(
    session_id: str, state: State, caller: Asker, reason: Annotated[str, Query(max_length=200)] = "stopped"
) -> SessionInfo:
    found = await asyncio.to_thread(state.stores.sessions.find, session_id)
    caller.in_world(found.world_id, Role.AUTHOR)
    return await asyncio.to_thread(state.stores.sessions.end, session_id, reason, caller.subject)


def _context(wanted: SessionOpen, state: GatewayState) -> ComputeContext:
    """Where the strategy runs, by what the world switched on. Raises QmtlError: E_SESSION_INACTIVE, E_WORLD_UNKNOWN."""
    world, now = state.stores.worlds.world(wanted.world_id), datetime.now(UTC)
    activation = next(iter(state.stores.fence.activations(wanted.world_id, wanted.strategy_id)), None)
    run = state.stores.runs.newest_run(wanted.strategy_id, wanted.world_id)
    context = resolve_context(
        DataScope(
            wanted.world_id,
            as_of=world.now(now).isoformat(),
            dataset_fingerprint=run.context.dataset_fingerprint if run else None,
        ),
        SHADOW if wanted.shadow else activation.effective_mode if activation else None,
        decided_at=now,  # an activation holds until it is changed; whether its decision is fresh, the session's own gate and the fence watch
        now=now,
        allow_live=world.spec.allow_live,
    )
    if wanted.shadow:
        return context
    if (
        activation is None
        or not activation.active_in_effect
        or context.execution_domain not in (Domain.DRYRUN, Domain.LIVE)
    ):
        why = (
            "has not decided about it"
            if activation is None
            else f"has it {'active' if activation.active else 'not active'} in mode {activation.effective_mode}"
        )
        raise QmtlError(
            "E_SESSION_INACTIVE",
            f"the strategy is not switched on for paper or live: world {wanted.world_id} {why}",
            "submit it, and see qmtl world show",
        )
    return context
