"""Node queues: find them by tag, read them, append to them."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.sessions import QueueAppend, QueueAppended, QueueInfo, QueueRead

router = APIRouter(prefix="/queues", tags=["queues"], route_class=GuardedRoute)


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


@router.get("/{topic}/messages", summary="Read a queue's messages after a position")
def read(
    topic: str,
    state: State,
    caller: CurrentCaller,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    last: Annotated[bool, Query(description="read the newest messages instead")] = False,
) -> QueueRead:
    caller.require_role(state.stores.catalogue.find(topic).world_id, Role.READER)
    if last:
        after = max(after, state.stores.queues.bounds(topic).last - limit)
    messages, position = state.stores.queues.read(topic, after, limit)
    return QueueRead(topic=topic, messages=tuple(messages), position=position)


@router.post(
    "/{topic}/messages", summary="Append bars of a node's output; a key that is there is not added again"
)
def append(topic: str, body: QueueAppend, state: State, caller: CurrentCaller) -> QueueAppended:
    caller.require_role(state.stores.catalogue.find(topic).world_id, Role.AUTHOR)
    return QueueAppended(added=state.stores.queues.append(topic, body.messages))
