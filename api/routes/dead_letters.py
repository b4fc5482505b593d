"""Dead letters: list, retry and drop events that the relay could not publish."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from api.auth.access import Caller, CurrentCaller, GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import EVERY_WORLD, Role
from qmtl_sdk.contracts.events import DeadLetter

router = APIRouter(prefix="/events/dead-letters", tags=["events"], route_class=GuardedRoute)

Number = Annotated[int, Path(ge=1, lt=2**63)]


@router.get("", summary="List the events that could not be published, oldest first")
def list_dead_letters(
    state: State,
    caller: CurrentCaller,
    after: Annotated[int, Query(ge=0, lt=2**63)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[DeadLetter]:
    """Only events of worlds in which the caller is an operator."""
    worlds = [world for world in caller.grants if caller.may(Role.OPERATOR, world)]
    everywhere = caller.may(Role.OPERATOR, EVERY_WORLD)
    return state.stores.dead_letters.all(after, limit, None if everywhere else worlds)


@router.post("/{number}/retry", summary="Give an event back to the relay")
def retry(number: Number, state: State, caller: CurrentCaller) -> DeadLetter:
    _require_operator(state, caller, number)
    return state.stores.dead_letters.retry(number, caller.subject)


@router.delete("/{number}", summary="Give an event up; it is never published")
def drop(number: Number, state: State, caller: CurrentCaller) -> DeadLetter:
    _require_operator(state, caller, number)
    return state.stores.dead_letters.drop(number, caller.subject)


def _require_operator(state: GatewayState, caller: Caller, number: int) -> None:
    caller.require_role(state.stores.dead_letters.find(number).world_id, Role.OPERATOR)
