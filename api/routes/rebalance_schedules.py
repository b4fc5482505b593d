"""Schedules of rebalancings: set, list and remove them."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Path

from api.auth.access import Caller, CurrentCaller, GuardedRoute
from api.state import GatewayState, State
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.rebalance_schedules import (
    RebalanceSchedule,
    RebalanceScheduleBody,
    ScheduleName,
)

router = APIRouter(prefix="/rebalancing/schedules", tags=["allocations"], route_class=GuardedRoute)

_Name = Annotated[ScheduleName, Path()]


@router.get("", summary="List the schedules of rebalancings, by name")
def schedules(state: State, caller: CurrentCaller) -> list[RebalanceSchedule]:
    """Those of which the caller may read every world, each with what its newest firing decided."""
    found = state.stores.rebalance_schedules.all()
    return [item for item in found if all(caller.role_in(world) for world in item.body.world_ids)]


@router.get("/{name}", summary="Show a schedule of rebalancings")
def show(name: _Name, state: State, caller: CurrentCaller) -> RebalanceSchedule:
    found = state.stores.rebalance_schedules.find(name)
    for world_id in found.body.world_ids:
        caller.require_role(world_id, Role.READER)
    return found


@router.put("/{name}", summary="Set a schedule of rebalancings, or replace it")
async def put(
    name: _Name, body: RebalanceScheduleBody, state: State, caller: CurrentCaller
) -> RebalanceSchedule:
    """Needs an operator of all its worlds; where one of them allows live, the live header too.

    Its runs are requested in the name of the caller, who cannot approve them.
    """
    for world_id in body.world_ids:
        caller.require_role(world_id, Role.OPERATOR)
    await asyncio.to_thread(_require_live, body, state, caller)
    return await state.rebalance_schedules.set(name, body, caller, caller.live)


@router.delete("/{name}", status_code=204, summary="Remove a schedule of rebalancings")
async def remove(name: _Name, state: State, caller: CurrentCaller) -> None:
    """What it has requested stays: abort a run that nobody wants."""
    await state.rebalance_schedules.remove(name, caller)


def _require_live(body: RebalanceScheduleBody, state: GatewayState, caller: Caller) -> None:
    """Require the live header where one of the worlds allows live."""
    for world_id in body.world_ids:
        if state.stores.worlds.world(world_id).spec.allow_live:
            caller.require_live(world_id)
