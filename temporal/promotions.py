"""What the Gateway does with Temporal about promotions. Temporal alone keeps them: one that was started goes on for as long as it takes."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.client import Client, WorkflowHandle, WorkflowQueryFailedError, WorkflowUpdateFailedError
from temporalio.common import SearchAttributePair, TypedSearchAttributes, WorkflowIDConflictPolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.applies.explain import named
from activities.applies.requests import SqlApplyRequests
from activities.messages.promotion import EndPromotion, PromotionEnd, PromotionInput
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from temporal.client import retry_while_unavailable
from temporal.plugin import refused
from workflows.promotion import PromotionWorkflow
from workflows.shared import SEARCH_STRATEGY, SEARCH_WORLD, TASK_TIMEOUT, WORKFLOWS

_QUERY, _LISTED = timedelta(seconds=5), 100


def promotion_id(world_id: str, strategy_id: str) -> str:
    return f"promotion:{world_id}:{strategy_id}"


class PromotionService:
    """Starts promotions and sends them what people decide. Only Temporal stores them."""

    def __init__(self, client: Client, store_id: str, applies: SqlApplyRequests) -> None:
        self._client = client
        self._store_id = store_id
        self._applies = applies

    async def request(self, world_id: str, request: PromotionRequest, actor: str) -> PromotionView:
        """Begin one. Asked for again the same it is the same. Raises QmtlError: E_STRATEGY_UNKNOWN, E_DECISION_UNKNOWN, E_WORLD_ARCHIVED, E_PROMOTION_RUNNING."""
        context = await asyncio.to_thread(self._applies.planning_context, world_id)
        context.world.require_active()
        strategy_id = named(request.strategy, context).strategy_id
        promotion = PromotionInput(
            store_id=self._store_id,
            world_id=world_id,
            strategy_id=strategy_id,
            to=request.to,
            requested_by=actor,
            reason=request.reason,
        )
        try:
            await retry_while_unavailable(lambda: self._start(promotion), limit_s=10.0)
        except WorkflowAlreadyStartedError:
            there = await self.find(world_id, strategy_id)
            if (there.to, there.requested_by) != (request.to, actor):
                raise QmtlError(
                    "E_PROMOTION_RUNNING",
                    f"{there.requested_by} has asked to bring it to {there.to} already; {there.waits_for}",
                    "wait for that, or end it: qmtl world promote W STRATEGY --end",
                ) from None
            await self._tell_to_look(world_id, strategy_id)
        return await self.find(world_id, strategy_id)

    async def _start(self, promotion: PromotionInput) -> None:
        attributes = TypedSearchAttributes(
            [
                SearchAttributePair(SEARCH_WORLD, promotion.world_id),
                SearchAttributePair(SEARCH_STRATEGY, promotion.strategy_id),
            ]
        )
        await self._client.start_workflow(
            PromotionWorkflow.run,
            promotion,
            id=promotion_id(promotion.world_id, promotion.strategy_id),
            task_queue=WORKFLOWS,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            task_timeout=TASK_TIMEOUT,
            search_attributes=attributes,
            static_summary=f"bring {promotion.strategy_id[:17]} of world {promotion.world_id} to {promotion.to}"[
                :190
            ],
        )

    async def find(self, world_id: str, strategy_id: str) -> PromotionView:
        """The newest promotion of a strategy. Raises QmtlError (E_PROMOTION_UNKNOWN)."""
        handle = self._handle(world_id, strategy_id)
        try:
            return await retry_while_unavailable(
                lambda: handle.query(PromotionWorkflow.gate, rpc_timeout=_QUERY), limit_s=10.0
            )
        except RPCError as error:
            raise _unknown(error, world_id, strategy_id) from error
        except WorkflowQueryFailedError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the promotion does not answer: {error}",
                "is a worker running? qmtl status says",
            ) from error

    async def running(self, world_id: str) -> list[PromotionView]:
        """Those that are under way. (Temporal's list lags a moment behind.)"""
        query = f"WorkflowType = 'PromotionWorkflow' AND ExecutionStatus = 'Running' AND {SEARCH_WORLD.name} = '{world_id}'"
        found = await retry_while_unavailable(self._listed(query), limit_s=10.0)
        prefix = promotion_id(world_id, "")
        return [await self.find(world_id, workflow_id.removeprefix(prefix)) for workflow_id in found]

    def _listed(self, query: str) -> Callable[[], Awaitable[list[str]]]:
        """A call that `again` can repeat."""

        async def call() -> list[str]:
            return [item.id async for item in self._client.list_workflows(query, limit=_LISTED)]

        return call

    async def end(self, world_id: str, strategy_id: str, actor: str, reason: str) -> PromotionView:
        """Raises QmtlError: E_PROMOTION_UNKNOWN, E_PROMOTION_ENDED, E_APPLY_RUNNING while its apply is under way."""
        if (there := await self.find(world_id, strategy_id)).outcome:
            raise QmtlError(
                "E_PROMOTION_ENDED",
                f"it has ended: {there.outcome}, {there.waits_for}",
                "there is nothing to end",
            )
        handle = self._handle(world_id, strategy_id)
        try:
            return await retry_while_unavailable(
                lambda: handle.execute_update(PromotionWorkflow.end, EndPromotion(actor=actor, reason=reason))
            )
        except RPCError as error:
            raise _unknown(error, world_id, strategy_id) from error
        except WorkflowUpdateFailedError as error:
            raise refused(error) from error.cause

    async def _tell_to_look(self, world_id: str, strategy_id: str) -> None:
        try:
            await retry_while_unavailable(
                lambda: self._handle(world_id, strategy_id).signal(PromotionWorkflow.look), limit_s=10.0
            )
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise  # else it has ended meanwhile, which its view says

    def _handle(self, world_id: str, strategy_id: str) -> WorkflowHandle[PromotionWorkflow, PromotionEnd]:
        return self._client.get_workflow_handle_for(
            PromotionWorkflow.run, promotion_id(world_id, strategy_id)
        )


def _unknown(error: RPCError, world_id: str, strategy_id: str) -> Exception:
    if error.status != RPCStatusCode.NOT_FOUND:
        return error
    return QmtlError(
        "E_PROMOTION_UNKNOWN",
        f"nobody has asked to promote {strategy_id[:80]} in {world_id}",
        "qmtl world promote W STRATEGY asks for it",
    )
