"""Node queues: find them by tag, read them, add to them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from api.auth.access import Asker, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueAppend, QueueAppended, QueueInfo, QueueRead

router = APIRouter(prefix="/queues", tags=["queues"], route_class=GuardedRoute)


@router.get("/by_tag", summary="The queues of a world that have these tags")
def by_tag(
    state: State,
    caller: Asker,
    tags: Annotated[str, Query(min_length=1, max_length=1000, description="separated by commas")],
    interval: Annotated[str, Query(max_length=20, description="seconds, or like 1h")],
    world_id: Annotated[str, Query(max_length=64)],
    match_mode: Annotated[
        Literal["any", "all"], Query(description="whether a queue needs one of the tags or all")
    ] = "any",
    execution_domain: Annotated[
        Domain, Query(description="queues of other domains are not seen")
    ] = Domain.LIVE,
) -> list[QueueInfo]:
    caller.in_world(world_id, Role.READER)
    state.stores.worlds.world(world_id)
    wanted = sorted({tag.strip() for tag in tags.split(",") if tag.strip()})
    if not wanted:
        raise QmtlError("E_BODY_INVALID", "tags: names no tag", "write them separated by commas")
    return state.stores.catalogue.by_tag(
        wanted, seconds(interval), match_mode, world_id, execution_domain.value
    )


@router.get("/{topic}/messages", summary="A queue's messages after a position")
def read(
    topic: str,
    state: State,
    caller: Asker,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    last: Annotated[bool, Query(description="the newest ones instead")] = False,
) -> QueueRead:
    caller.in_world(state.stores.catalogue.find(topic).world_id, Role.READER)
    if last:
        after = max(after, state.stores.queues.bounds(topic).last - limit)
    messages, position = state.stores.queues.read(topic, after, limit)
    return QueueRead(topic=topic, messages=tuple(messages), position=position)


@router.post(
    "/{topic}/messages",
    summary="Add bars of a node's output; one whose key is there already is not added again",
)
def append(topic: str, body: QueueAppend, state: State, caller: Asker) -> QueueAppended:
    caller.in_world(state.stores.catalogue.find(topic).world_id, Role.AUTHOR)
    return QueueAppended(added=state.stores.queues.append(topic, body.messages))
