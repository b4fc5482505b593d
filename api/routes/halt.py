"""Halt every world at once."""

from fastapi import APIRouter

from activities.fence.halt_all import halt_all
from api.auth.access import CurrentCaller, GuardedRoute
from api.routes.applies import Reason
from api.state import State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.model import Model

router = APIRouter(tags=["worlds"], route_class=GuardedRoute)


class Halted(Model):
    """The worlds that are halted now."""

    worlds: tuple[str, ...]


@router.post("/halt", summary="Halt every world in which the caller is an operator")
async def halt_every_world(state: State, caller: CurrentCaller, body: Reason | None = None) -> Halted:
    """Acts in the store, as the halt of one world. A world that cannot be halted stops no other."""

    def act() -> Halted:
        known = state.stores.fence.world_ids()
        worlds = [world_id for world_id in known if caller.may(Role.OPERATOR, world_id)]
        halt_all(state.stores.database, worlds, caller.subject, (body or Reason()).reason)
        return Halted(worlds=tuple(worlds))

    return await state.run_halt(act)
