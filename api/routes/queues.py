"""Node queues: find them by tag, read them, append to them.

A queue is of a world and a domain. A running strategy reads those of its session's domain, and appends to
those of its own nodes there. Operators may read any.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from activities.storage.tables import QueueRow
from api.auth.access import CurrentCaller, GuardedRoute
from api.routes.session_secret import SessionSecret, held_session
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.identity import compute_key
from qmtl_sdk.contracts.sessions import (
    QueueAppend,
    QueueAppended,
    QueueInfo,
    QueueRead,
    SessionInfo,
    is_key_of,
)

router = APIRouter(prefix="/queues", tags=["queues"], route_class=GuardedRoute)


SessionId = Annotated[str, Query(max_length=64, description="the session that reads or appends")]


class TagFilter(BaseModel):
    """Which queues of a world to find."""

    tags: str = Field(min_length=1, max_length=1000, description="tags, separated by commas")
    interval: str = Field(max_length=20, description="length of a bar: seconds, or like 1h")
    world_id: str = Field(max_length=64)
    match_mode: Literal["any", "all"] = Field("any", description="whether one of the tags is enough")
    execution_domain: Domain = Field(Domain.LIVE, description="queues of other domains are not found")


@router.get("/by_tag", summary="Find the queues of a world by tag")
def by_tag(wanted: Annotated[TagFilter, Query()], state: State, caller: CurrentCaller) -> list[QueueInfo]:
    caller.require_role(wanted.world_id, Role.READER)
    state.stores.worlds.world(wanted.world_id)
    tags = sorted({tag.strip() for tag in wanted.tags.split(",") if tag.strip()})
    if not tags:
        raise QmtlError("E_BODY_INVALID", "tags: names no tag", "write tags separated by commas")
    return state.stores.catalogue.by_tag(
        tags, seconds(wanted.interval), wanted.match_mode, wanted.world_id, wanted.execution_domain.value
    )


class ReadRange(BaseModel):
    """Which messages of a queue to read, and for which session."""

    after: int = Field(0, ge=0, lt=2**63)
    limit: int = Field(1000, ge=1, le=5000)
    last: bool = Field(False, description="read the newest messages instead")
    session_id: str = Field("", max_length=64, description="the session that reads")


@router.get("/{topic}/messages", summary="Read a queue's messages after a position")
def read(
    topic: str,
    wanted: Annotated[ReadRange, Query()],
    state: State,
    caller: CurrentCaller,
    secret: SessionSecret = "",
) -> QueueRead:
    queue = state.stores.catalogue.find(topic)
    if wanted.session_id or not caller.may(Role.OPERATOR, queue.world_id):
        _require_session_of(queue, held_session(wanted.session_id, state, caller, secret))
    after = wanted.after
    if wanted.last:
        after = max(after, state.stores.queues.bounds(topic).last - wanted.limit)
    messages, position = state.stores.queues.read(topic, after, wanted.limit)
    return QueueRead(topic=topic, messages=tuple(messages), position=position)


@router.post(
    "/{topic}/messages", summary="Append bars of a node's output; a key that is there is not added again"
)
def append(
    topic: str,
    body: QueueAppend,
    state: State,
    caller: CurrentCaller,
    session_id: SessionId = "",
    secret: SessionSecret = "",
) -> QueueAppended:
    """Only what a session computed in its own domain: each key names the node, the bar and the context."""
    queue = state.stores.catalogue.find(topic)
    session = held_session(session_id, state, caller, secret)
    _require_session_of(queue, session)
    if queue.node_id not in state.stores.graph.node_ids(session.strategy_id):
        raise _forbidden(queue, "the strategy of the session does not have its node")
    context_key = compute_key(queue.node_id, queue.world_id, queue.execution_domain, "", "")
    for message in body.messages:
        if not is_key_of(message, queue.node_id, context_key):
            raise QmtlError(
                "E_QUEUE_KEY",
                f"the key {message.key[:200]!r} is not that of a bar of {topic} in this world and domain",
                "build it with qmtl_sdk.contracts.sessions.message_key from the grant's queue_map",
            )
    return QueueAppended(added=state.stores.queues.append(topic, body.messages))


def _require_session_of(queue: QueueRow, session: SessionInfo) -> None:
    """Require a running session in the queue's world and domain.

    Raises QmtlError: E_SESSION_LOST, E_QUEUE_FORBIDDEN.
    """
    if session.ended_at is not None:
        raise QmtlError("E_SESSION_LOST", f"the session has ended: {session.end_reason}", "open another one")
    if (queue.world_id, queue.execution_domain) != (session.world_id, session.execution_domain.value):
        raise _forbidden(queue, f"the session runs in {session.execution_domain.value} of {session.world_id}")


def _forbidden(queue: QueueRow, why: str) -> QmtlError:
    return QmtlError(
        "E_QUEUE_FORBIDDEN",
        f"the queue {queue.topic} belongs to {queue.execution_domain} of {queue.world_id}: {why}",
        "use the topics of the session's grant, and those that its tag queries find",
    )
