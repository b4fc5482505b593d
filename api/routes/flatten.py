"""Flatten: close what strategies hold."""

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenEvery, FlattenRequest, FlattenResult, FlattenResults

router = APIRouter(tags=["orders"], route_class=GuardedRoute)


@router.post("/worlds/{world_id}/flatten", summary="Close what one strategy of a world holds, or what all do")
def flatten(world_id: str, body: FlattenRequest, state: State, caller: CurrentCaller) -> FlattenResult:
    """Idempotent by `flatten_id`: repeated, it does nothing again and answers what remains now.

    By orders that only reduce. It works in a world that is halted or frozen, and in one that does not allow
    live any more. Afterwards a strategy that is not halted may trade again.
    """
    return state.stores.flattens.request(world_id, body, caller.subject)


@router.post("/flatten", summary="Close what strategies hold in every world of the caller")
def flatten_every_world(body: FlattenEvery, state: State, caller: CurrentCaller) -> FlattenResults:
    """As for one world. A world in which it fails stops no other; it is named in the answer."""
    results, failed = list[FlattenResult](), dict[str, str]()
    for world_id in state.stores.fence.world_ids():
        if caller.may(Role.OPERATOR, world_id):
            request = FlattenRequest(**body.model_dump(), strategy=None)
            try:
                results.append(state.stores.flattens.request(world_id, request, caller.subject))
            except QmtlError as error:
                failed[world_id] = str(error)
    return FlattenResults(results=tuple(results), failed=failed)
