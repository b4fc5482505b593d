"""Edges between a world's execution domains, and which of them are open."""

from datetime import datetime

from sqlmodel import Session, col, select

from activities.storage.database import Database
from activities.storage.tables import EdgeOverrideRow
from activities.storage.transactions import Transaction, utc_now
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.edges import EdgeOverride

Edge = tuple[str, str]

# The edge that only an apply opens.
LIVE_EDGE: Edge = ("domain:backtest", "domain:live")


class SqlEdgeStore:
    """Reads edge overrides. `SqlFenceStore.override` writes them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def overrides(self, world_id: str) -> list[EdgeOverride]:
        """List the edge overrides of a world. Raises QmtlError (E_WORLD_UNKNOWN)."""
        query = (
            select(EdgeOverrideRow)
            .where(EdgeOverrideRow.world_id == world_id)
            .order_by(col(EdgeOverrideRow.src), col(EdgeOverrideRow.dst))
        )
        with self._database.read() as session:
            world_row(session, world_id)
            return [
                EdgeOverride(
                    src=row.src,
                    dst=row.dst,
                    active=row.active,
                    reason=row.reason,
                    updated_at=datetime.fromisoformat(row.updated_at),
                )
                for row in session.exec(query)
            ]


def read_edge(session: Session, world_id: str, edge: Edge) -> dict[str, object] | None:
    """Read an override as the audit trail shows it; None where there is none."""
    row = session.get(EdgeOverrideRow, (world_id, *edge))
    return {"active": row.active, "reason": row.reason} if row else None


def write_edge(tx: Transaction, world_id: str, edge: Edge, active: bool, reason: str) -> str:
    """Store an override. Returns the time of the change (ISO 8601, UTC)."""
    now = utc_now()
    src, dst = edge
    tx.upsert(
        EdgeOverrideRow(world_id=world_id, src=src, dst=dst, active=active, reason=reason, updated_at=now)
    )
    return now
