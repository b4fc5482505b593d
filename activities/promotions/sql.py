"""Promotions in the database.

Conditions of the next stage, the apply that takes a strategy there, the audit trail.
"""

from collections.abc import Sequence

from sqlalchemy import text
from sqlmodel import select

from activities.applies.conditions import conditions
from activities.applies.requests import SqlApplyRequests
from activities.messages.promotion import PromotionTarget, PublishPromotion
from activities.storage.database import Database
from activities.storage.tables import AuditRow
from activities.storage.transactions import RecordedChange
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.domains import MODE_OF, rank_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.promotions import PromotionProgress

# The condition of the index `audit_promotion`, in its exact words.
_OF_PROMOTION = text("substr(audit.action, 1, 10) = 'promotion.'")


class SqlPromotions:
    """What a promotion reads and writes."""

    def __init__(self, database: Database, applies: SqlApplyRequests) -> None:
        self._database = database
        self._applies = applies

    def progress(self, world_id: str, strategy_id: str, to: PromotionTarget) -> PromotionProgress:
        """Read the strategy's stage, and the conditions of its next one.

        Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING.
        """
        context = self._applies.planning_context(world_id)
        allocation = context.allocation(strategy_id)
        evidence = context.evidence.get(strategy_id)
        base = {
            "strategy_id": strategy_id,
            "name": evidence.name if evidence else "",
            "stage": allocation.mode if allocation.active else "off",
        }
        if allocation.rank >= rank_of(MODE_OF[to]):
            return PromotionProgress(**base, target="")
        in_dryrun = allocation.rank >= rank_of(MODE_OF["dryrun"])
        target = MODE_OF["live"] if in_dryrun else MODE_OF["dryrun"]
        return PromotionProgress(**base, target=target, conditions=conditions(strategy_id, target, context))

    def request_apply(self, world_id: str, request: ApplyRequest, actor: str, issuers: Sequence[str]) -> str:
        """Request the apply of the next stage in the name of `actor`.

        Returns why it was refused, if it was.
        """
        try:
            self._applies.request(world_id, request, actor, issuers=issuers)
        except QmtlError as error:
            if error.status >= 500:
                raise
            return f"{error.message} [{error.code}]"
        return ""

    def publish(self, message: PublishPromotion) -> None:
        """Audit and publish a promotion's new state. Idempotent by run and state."""
        action = f"promotion.{message.state}"
        query = select(AuditRow.number).where(
            _OF_PROMOTION,
            AuditRow.chain == message.world_id,
            AuditRow.correlation_id == message.run_id,
            AuditRow.action == action,
        )
        with self._database.write(message.actor) as tx:
            tx.lock(f"promotion:{message.run_id}")
            if tx.session.exec(query).first() is not None:
                return
            data = message.model_dump(include={"world_id", "strategy_id", "run_id", "state", "reason"})
            tx.record(
                RecordedChange(
                    action,
                    message.world_id,
                    message.strategy_id,
                    after=data,
                    correlation_id=message.run_id,
                    event="promotion.state",
                    data=data,
                )
            )
