"""The allocations of all worlds in the database."""

import json
from datetime import UTC, datetime

from sqlmodel import Session, col, select

from activities.allocation.planner import plan_rebalancing
from activities.decisions.evidence import newest_evidence
from activities.fence.scales import WorldScales, scales_of, weights_of, with_past
from activities.fence.state import require_unlocked
from activities.ledger.exposures import world_profits
from activities.storage.database import Database
from activities.storage.tables import AllocationRow, FenceRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from activities.worlds.specs import world_of, world_row
from qmtl_sdk.contracts.allocations import (
    AllocationChange,
    AllocationSnapshot,
    AllocationUpdate,
    WorldAllocation,
    require_worlds,
)
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.capital import StrategyCapital
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
            return allocations_of(session)

    def scales(self, world_id: str) -> WorldScales:
        """Read what rebalancings have made of the weights of a world's strategies."""
        with self._database.read() as session:
            return scales_of(session.connection(), [world_id]).get(world_id, WorldScales())

    def strategy_capital(self, world_id: str, strategy_id: str) -> StrategyCapital:
        """Read what a strategy trades with now. Raises QmtlError (E_WORLD_UNKNOWN)."""
        with self._database.read() as session:
            capital = world_of(world_row(session, world_id)).spec.capital
            row = session.get(AllocationRow, world_id)
            key = (world_id, strategy_id)
            weight = weights_of(session.connection(), [key]).get(key, ZERO)
        return StrategyCapital(
            world_share=WorldAllocation.model_validate_json(row.body).weight if row else None,
            weight=weight,
            amount=EXACT.multiply(capital.amount, weight) if capital else None,
            currency=capital.currency if capital else "",
        )

    def update(self, change: AllocationUpdate, actor: str) -> AllocationSnapshot:
        """Set the allocations of the given worlds; the others keep theirs.

        Idempotent: what is set already is not set again. Raises QmtlError: E_WORLD_UNKNOWN; E_ETAG where the
        allocations are not those that the caller has read; E_WEIGHT where all worlds have more than 1, or a
        rebalancing has set the share of one; E_REBALANCING while one is under way.
        """
        with self._database.write(actor) as tx:
            tx.lock("allocation")
            before = allocations_of(tx.session)
            before.require_etag(change.etag)
            held = {item.world_id: item for item in before.allocations}
            wanted = [item for item in change.allocations if held.get(item.world_id) != item]
            after = held | {item.world_id: item for item in wanted}
            try:
                require_worlds(after.values())
            except ValueError as error:
                raise QmtlError(
                    "E_WEIGHT", str(error), "lower the share of another world in the same request"
                ) from error
            now = utc_now()
            for item in wanted:
                world_row(tx.session, item.world_id)
                _require_free(tx.session, item)
                old = held.get(item.world_id)
                row = write_allocation(tx, old, item, now)
                if row.scales and old is not None and old.weight and not item.weight:
                    change_scales(
                        row, AllocationChange(world_id=item.world_id, before=old.weight, after=ZERO), now
                    )
            return allocations_of(tx.session) if wanted else before

    def plan(self, request: MultiWorldRebalanceRequest) -> RebalancePlan:
        """Plan a rebalancing against the present allocations; nothing is changed.

        With schema 2 the plan has the metrics of the newest evidence of each world's strategies. Raises
        QmtlError: E_WORLD_UNKNOWN, E_ETAG, and what the planner raises.
        """
        with self._database.read() as session:
            return plan_of_request(session, request)


def plan_of_request(session: Session, request: MultiWorldRebalanceRequest) -> RebalancePlan:
    """Plan a rebalancing against the present allocations. Raises as `SqlAllocations.plan`."""
    found = list[EvidenceMetrics]()
    allocations_of(session).require_etag(request.allocations_etag)
    for change in request.worlds:
        world_row(session, change.world_id)
        if request.schema_version == 2:
            found += [
                EvidenceMetrics(
                    world_id=change.world_id, strategy_id=candidate.strategy_id, metrics=candidate.metrics
                )
                for candidate in newest_evidence(session, change.world_id, datetime.now(UTC))
            ]
    return plan_rebalancing(request, found)


def _require_free(session: Session, wanted: WorldAllocation) -> None:
    """Check that no rebalancing decides about the share of a world, now or since it has done so once.

    The share of a halted world may be taken away: its strategies trade with nothing then. Raises
    QmtlError: E_REBALANCING, E_WEIGHT.
    """
    fence = session.get_one(FenceRow, wanted.world_id)
    require_unlocked(fence, of_applies=False)
    row = session.get(AllocationRow, wanted.world_id)
    if row is not None and row.scales and (wanted.weight or not fence.halted):
        raise QmtlError(
            "E_WEIGHT",
            f"a rebalancing has set the share of {wanted.world_id}, and its strategies trade with it",
            f"change it by another one: qmtl world rebalance-apply {wanted.world_id}=…",
        )


def write_allocation(
    tx: Transaction, before: WorldAllocation | None, after: WorldAllocation, now: str
) -> AllocationRow:
    """Write the allocation of a world, and record it. The caller holds the lock of allocations.

    What the world has earned so far at each account is written down with it: from there its share drifts.
    """
    row = tx.session.get(AllocationRow, after.world_id) or AllocationRow(
        world_id=after.world_id, body="", updated_at=now
    )
    row.body, row.updated_at = after.model_dump_json(), now
    profits = world_profits(tx.connection, after.world_id)
    row.profits = json.dumps({account: str(plain(profit)) for account, profit in profits.items()})
    tx.session.add(row)
    tx.record(
        RecordedChange(
            "allocation.set",
            after.world_id,
            after.world_id,
            before=before and before.json_dict(),
            after=after.json_dict(),
        )
    )
    return row


def change_scales(row: AllocationRow, change: AllocationChange, now: str) -> None:
    """Write by how much a change of its share multiplies the positions of a world, and what did until now."""
    scales = WorldScales.stored(row.scales)
    row.past = with_past(row.past, now, scales.world)
    row.scales = scales.changed(change).model_dump_json()


def allocations_of(session: Session) -> AllocationSnapshot:
    """Read the allocations of all worlds."""
    rows = session.exec(select(AllocationRow).order_by(col(AllocationRow.world_id))).all()
    return AllocationSnapshot(
        allocations=tuple(WorldAllocation.model_validate_json(row.body) for row in rows),
        updated_at=max((datetime.fromisoformat(row.updated_at) for row in rows), default=None),
    )
