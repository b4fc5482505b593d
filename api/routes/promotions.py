"""Promotions of strategies to dryrun or live."""

import asyncio

from fastapi import APIRouter

from api.auth.access import CurrentCaller, GuardedRoute
from api.routes.applies import Reason
from api.state import GatewayState, State
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from workflows.ids import promotion_id

router = APIRouter(prefix="/worlds/{world_id}/promotions", tags=["promotions"], route_class=GuardedRoute)


@router.post(
    "",
    status_code=202,
    summary="Promote a strategy to dryrun or live, stage by stage, as its conditions come to hold",
)
async def request_promotion(
    world_id: str, body: PromotionRequest, state: State, caller: CurrentCaller
) -> PromotionView:
    """Each stage is an apply, which other people approve. Live needs the live header."""
    if body.to == "live":
        caller.require_live(world_id)
    return _linked(await state.promotions.request(world_id, body, caller), state)


@router.get("", summary="List the promotions that are under way")
async def list_promotions(world_id: str, state: State) -> list[PromotionView]:
    await asyncio.to_thread(state.stores.worlds.world, world_id)
    return [_linked(found, state) for found in await state.promotions.running(world_id)]


@router.get(
    "/{strategy_id}", summary="Show a strategy's newest promotion: its conditions and what it waits for"
)
async def show_promotion(world_id: str, strategy_id: str, state: State) -> PromotionView:
    return _linked(await state.promotions.find(world_id, strategy_id), state)


@router.post("/{strategy_id}/end", summary="End a promotion that is waiting")
async def end_promotion(
    world_id: str, strategy_id: str, state: State, caller: CurrentCaller, body: Reason | None = None
) -> PromotionView:
    return _linked(
        await state.promotions.end(world_id, strategy_id, caller.subject, (body or Reason()).reason), state
    )


def _linked(found: PromotionView, state: GatewayState) -> PromotionView:
    return found.model_copy(
        update={"workflow_url": state.ui_link(promotion_id(found.world_id, found.strategy_id))}
    )
