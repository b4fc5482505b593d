"""What a promotion reads and writes: the conditions of its next stage, the apply that takes the strategy there, and its place in the audit trail."""

from sqlmodel import select

from activities.storage.database import Database
from activities.storage.tables import AuditRow
from activities.worlds.applies import SqlApplyStore
from activities.worlds.conditions import conditions
from qmtl_sdk.contracts.applies import MODE_OF, ApplyRequest, rank_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.promotions import PromotionProgress

BUSY = ("E_APPLY_RUNNING", "E_WORLD_FROZEN")


class SqlPromotions:
    def __init__(self, database: Database, applies: SqlApplyStore) -> None:
        self._database, self._applies = database, applies

    def look(self, world_id: str, strategy_id: str, to: str) -> PromotionProgress:
        """Where the strategy stands, and what its next stage still asks for. Raises QmtlError: E_WORLD_UNKNOWN, E_POLICY_MISSING."""
        situation = self._applies.situation(world_id)
        stands = situation.standpoint(strategy_id)
        evidence = situation.evidence.get(strategy_id)
        base = {
            "strategy_id": strategy_id,
            "name": evidence.name if evidence else "",
            "stage": stands.mode if stands.active else "off",
        }
        if stands.rank >= rank_of(MODE_OF[to]):
            return PromotionProgress(**base, target="")
        target = MODE_OF["dryrun"] if stands.rank < rank_of(MODE_OF["dryrun"]) else MODE_OF["live"]
        return PromotionProgress(**base, target=target, conditions=conditions(strategy_id, target, situation))

    def ask(self, world_id: str, request: ApplyRequest, actor: str) -> str:
        """Ask for the apply that takes the strategy to its next stage, in the name of who asked for the promotion; why not now, where it can't be asked for."""
        try:
            self._applies.request(world_id, request, actor)
        except QmtlError as error:
            if error.status >= 500:
                raise
            return f"{error.message} [{error.code}]"
        return ""

    def tell(self, world_id: str, strategy_id: str, run_id: str, state: str, actor: str, reason: str) -> None:
        """Record what a promotion has come to, once for its run and state."""
        with self._database.write(actor) as tx:
            action = f"promotion.{state}"
            tx.lock(f"promotion:{run_id}")
            if (
                tx.session.exec(
                    select(AuditRow.number).where(
                        AuditRow.chain == world_id,
                        AuditRow.correlation_id == run_id,
                        AuditRow.action == action,
                    )
                ).first()
                is not None
            ):
                return
            data = {
                "world_id": world_id,
                "strategy_id": strategy_id,
                "run_id": run_id,
                "state": state,
                "reason": reason,
            }
            tx.record(
                action,
                world_id,
                strategy_id,
                after=data,
                correlation_id=run_id,
                event="promotion.state",
                data=data,
            )
