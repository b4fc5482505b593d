"""The allocations of all worlds in the database."""

from datetime import UTC, datetime

from sqlmodel import Session, col, select

from activities.allocation.planner import plan_rebalancing
from activities.decisions.evidence import newest_evidence
from activities.storage.database import Database
from activities.storage.tables import AllocationRow
from activities.storage.transactions import RecordedChange, utc_now
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.allocations import (
    AllocationSnapshot,
    AllocationUpdate,
    WorldAllocation,
    require_worlds,
)
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_plan import EvidenceMetrics, RebalancePlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest


class SqlAllocations:
    """Which share of the capital each world has."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def snapshot(self) -> AllocationSnapshot:
        """Read the allocations of all worlds."""
        with self._database.read() as session:
            return _snapshot(session)

    def update(self, change: AllocationUpdate, actor: str) -> AllocationSnapshot:
        """Set the allocations of the given worlds; the others keep theirs.

        Idempotent: what is set already is not set again. Raises QmtlError: E_WORLD_UNKNOWN; E_ETAG where the
        allocations are not those that the caller has read; E_WEIGHT where all worlds have more than 1.
        """
        with self._database.write(actor) as tx:
            tx.lock("allocation")
            before = _snapshot(tx.session)
            before.require_etag(change.etag)
            held = {item.world_id: item for item in before.allocations}
            wanted = [item for item in change.allocations if held.get(item.world_id) != item]
            after = held | {item.world_id: item for item in wanted}
            try:
                require_worlds(after.values())
            except ValueError as error:
                raise QmtlError(
                    "E_WEIGHT", str(error), "lower the weight of another world in the same request"
                ) from error
            now = utc_now()
            for item in wanted:
                world_row(tx.session, item.world_id)
                old = held.get(item.world_id)
                row = AllocationRow(world_id=item.world_id, body=item.model_dump_json(), updated_at=now)
                tx.upsert(row)
                tx.record(
                    RecordedChange(
                        "allocation.set",
                        item.world_id,
                        item.world_id,
                        before=old and old.json_dict(),
                        after=item.json_dict(),
                    )
                )
            return _snapshot(tx.session) if wanted else before

    def plan(self, request: MultiWorldRebalanceRequest) -> RebalancePlan:
        """Plan a rebalancing against the present allocations; nothing is changed.

        With schema 2 the plan has the metrics of the newest evidence of each world's strategies. Raises
        QmtlError: E_WORLD_UNKNOWN, E_ETAG, and what the planner raises.
        """
        found = list[EvidenceMetrics]()
        with self._database.read() as session:
            _snapshot(session).require_etag(request.allocations_etag)
            for change in request.worlds:
                world_row(session, change.world_id)
                if request.schema_version == 2:
                    found += [
                        EvidenceMetrics(
                            world_id=change.world_id,
                            strategy_id=candidate.strategy_id,
                            metrics=candidate.metrics,
                        )
                        for candidate in newest_evidence(session, change.world_id, datetime.now(UTC))
                    ]
        return plan_rebalancing(request, found)


def _snapshot(session: Session) -> AllocationSnapshot:
    rows = session.exec(select(AllocationRow).order_by(col(AllocationRow.world_id))).all()
    return AllocationSnapshot(
        allocations=tuple(WorldAllocation.model_validate_json(row.body) for row in rows),
        updated_at=max((datetime.fromisoformat(row.updated_at) for row in rows), default=None),
    )
