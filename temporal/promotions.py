"""The Gateway's calls to Temporal about promotions. Only Temporal stores them; one may run for months."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from temporalio.client import Client, WorkflowHandle, WorkflowQueryFailedError, WorkflowUpdateFailedError
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from activities.applies.requests import SqlApplyRequests
from activities.decisions.explain import find_strategy
from activities.messages.promotion import EndPromotion, PromotionEnd, PromotionInput
from qmtl_sdk.contracts.access import Caller
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from temporal.client import retriable_update_error, retry_while_unavailable
from temporal.plugin import update_refusal
from workflows.ids import promoted_strategy, promotion_id
from workflows.options import promotion_options
from workflows.promotion import PromotionWorkflow
from workflows.search_attributes import SEARCH_WORLD

# Limit of one query; it is retried while Temporal is unavailable.
_QUERY_TIMEOUT = timedelta(seconds=5)

# Seconds of retries while Temporal is unavailable.
_LIMIT_S = 10.0

# Promotions that a list of a world's running promotions holds at most.
_LIST_LENGTH = 100


class PromotionService:
    """Starts, reads and ends promotions."""

    def __init__(self, client: Client, store_id: str, applies: SqlApplyRequests) -> None:
        self._client = client
        self._store_id = store_id
        self._applies = applies

    async def request(self, world_id: str, request: PromotionRequest, caller: Caller) -> PromotionView:
        """Start a promotion. Idempotent: the same request of the same person returns the one that runs.

        Raises QmtlError: E_STRATEGY_UNKNOWN, E_DECISION_UNKNOWN, E_WORLD_ARCHIVED; E_PROMOTION_RUNNING if
        another promotion of the strategy runs.
        """
        context = await asyncio.to_thread(self._applies.planning_context, world_id)
        context.world.require_active()
        strategy = find_strategy(request.strategy, world_id, context.decision)
        strategy_id = strategy.strategy_id
        promotion = PromotionInput(
            store_id=self._store_id,
            world_id=world_id,
            strategy_id=strategy_id,
            name=strategy.name,
            to=request.to,
            requested_by=caller.subject,
            requested_issuers=await asyncio.to_thread(self._applies.issuers, caller.token_id),
            reason=request.reason,
        )
        try:
            await retry_while_unavailable(lambda: self._start(promotion), limit_s=_LIMIT_S)
        except WorkflowAlreadyStartedError:
            running = await self.find(world_id, strategy_id)
            if (running.to, running.requested_by) != (request.to, caller.subject):
                raise QmtlError(
                    "E_PROMOTION_RUNNING",
                    f"a promotion to {running.to} by {running.requested_by} is under way:"
                    f" {running.waits_for}",
                    f"wait for it, or end it: qmtl world promote {world_id} {request.strategy} --end",
                ) from None
            await self._signal_check(world_id, strategy_id)
        return await self.find(world_id, strategy_id)

    async def _start(self, promotion: PromotionInput) -> None:
        options = promotion_options(promotion.world_id, promotion.strategy_id, promotion.label, promotion.to)
        await self._client.start_workflow(PromotionWorkflow.run, promotion, **options)

    async def find(self, world_id: str, strategy_id: str) -> PromotionView:
        """Return the newest promotion of a strategy. Raises QmtlError: E_PROMOTION_UNKNOWN, E_UNAVAILABLE."""
        handle = self._handle(world_id, strategy_id)
        try:
            return await retry_while_unavailable(
                lambda: handle.query(PromotionWorkflow.gate, rpc_timeout=_QUERY_TIMEOUT), limit_s=_LIMIT_S
            )
        except RPCError as error:
            raise _unknown(error, world_id, strategy_id) from error
        except WorkflowQueryFailedError as error:
            raise QmtlError(
                "E_UNAVAILABLE",
                f"the promotion does not answer: {error}",
                "check with qmtl status that a worker runs",
            ) from error

    async def running(self, world_id: str) -> list[PromotionView]:
        """List the promotions that are under way in a world. Temporal's list lags a moment behind."""
        running = "WorkflowType = 'PromotionWorkflow' AND ExecutionStatus = 'Running'"
        query = f"{running} AND {SEARCH_WORLD.name} = '{world_id}'"
        found = await retry_while_unavailable(self._listed(query), limit_s=_LIMIT_S)
        return [await self.find(world_id, promoted_strategy(workflow_id, world_id)) for workflow_id in found]

    def _listed(self, query: str) -> Callable[[], Awaitable[list[str]]]:
        """Build a call that can be retried."""

        async def call() -> list[str]:
            return [item.id async for item in self._client.list_workflows(query, limit=_LIST_LENGTH)]

        return call

    async def end(self, world_id: str, strategy_id: str, actor: str, reason: str) -> PromotionView:
        """End a promotion.

        Raises QmtlError: E_PROMOTION_UNKNOWN, E_PROMOTION_ENDED; E_APPLY_RUNNING while its apply is under
        way.
        """
        found = await self.find(world_id, strategy_id)
        if found.outcome:
            raise QmtlError(
                "E_PROMOTION_ENDED",
                f"the promotion has ended: {found.outcome}, {found.waits_for}",
                "there is nothing to end",
            )
        handle = self._handle(world_id, strategy_id)
        request = EndPromotion(actor=actor, reason=reason)

        async def update() -> PromotionView:
            try:
                return await handle.execute_update(PromotionWorkflow.end, request)
            except RPCError as error:
                now = await self.find(world_id, strategy_id)
                if error.status != RPCStatusCode.NOT_FOUND or now.outcome:
                    raise
                raise retriable_update_error(error) from error  # it continues as new

        try:
            return await retry_while_unavailable(update, limit_s=_LIMIT_S)
        except RPCError as error:
            raise _unknown(error, world_id, strategy_id) from error
        except WorkflowUpdateFailedError as error:
            raise update_refusal(error) from error.cause

    async def _signal_check(self, world_id: str, strategy_id: str) -> None:
        try:
            await retry_while_unavailable(
                lambda: self._handle(world_id, strategy_id).signal(PromotionWorkflow.check), limit_s=_LIMIT_S
            )
        except RPCError as error:
            if error.status != RPCStatusCode.NOT_FOUND:
                raise  # otherwise it has ended meanwhile

    def _handle(self, world_id: str, strategy_id: str) -> WorkflowHandle[PromotionWorkflow, PromotionEnd]:
        return self._client.get_workflow_handle_for(
            PromotionWorkflow.run, promotion_id(world_id, strategy_id)
        )


def _unknown(error: RPCError, world_id: str, strategy_id: str) -> Exception:
    if error.status != RPCStatusCode.NOT_FOUND:
        return error
    return QmtlError(
        "E_PROMOTION_UNKNOWN",
        f"there is no promotion of {strategy_id[:80]} in {world_id}",
        "request one with qmtl world promote W STRATEGY",
    )
