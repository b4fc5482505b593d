"""Acknowledgements of fence changes by sessions and Gateways, and the lease of each Gateway."""

from datetime import UTC, datetime, timedelta

from sqlmodel import Session, col, select, update

from activities.messages.apply import FenceChange
from activities.sessions.listing import sessions_since
from activities.storage.database import Database
from activities.storage.tables import AckRow, GatewayRow
from activities.storage.transactions import Transaction, utc_now, utc_text
from qmtl_sdk.contracts.applies import Acknowledgement


class SqlGatewayLeases:
    """Which Gateways serve this store now: an apply waits for their acknowledgements too."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def heartbeat(self, gateway_id: str, lease_s: float) -> None:
        """Extend a Gateway's lease to `lease_s` seconds from now."""
        with self._database.write(gateway_id, bookkeeping=True) as tx:
            now = datetime.now(UTC)
            until = utc_text(now + timedelta(seconds=lease_s))
            lease = update(GatewayRow).where(col(GatewayRow.gateway_id) == gateway_id)
            if not tx.connection.execute(lease.values(expires_at=until)).rowcount:
                new = GatewayRow(gateway_id=gateway_id, started_at=utc_text(now), expires_at=until)
                tx.insert_new([new])

    def end(self, gateway_id: str) -> None:
        """End a Gateway's lease. Ending one that has ended changes nothing."""
        with self._database.write(gateway_id, bookkeeping=True) as tx:
            row = tx.session.get(GatewayRow, gateway_id)
            if row is not None:
                tx.session.delete(row)


def record_ack(tx: Transaction, world_id: str, sequence: int, holder: str, kind: str, late: bool) -> None:
    """Store that `holder` acknowledged the change with this sequence. The first acknowledgement stands."""
    row = AckRow(world_id=world_id, sequence=sequence, holder=holder, kind=kind, at=utc_now(), late=late)
    tx.insert_new([row])


def acknowledgements(
    session: Session, world_id: str, change: FenceChange, phase: str
) -> list[Acknowledgement]:
    """List who must acknowledge a change, and who did.

    Sessions and Gateways that were there at the change and still are must acknowledge it. Others that did are
    listed too.
    """
    query = select(AckRow).where(AckRow.world_id == world_id, AckRow.sequence == change.sequence)
    acks = {row.holder: row for row in session.exec(query)}
    gateways = select(GatewayRow.gateway_id).where(
        GatewayRow.expires_at >= utc_now(), GatewayRow.started_at <= utc_text(change.at)
    )
    holders = dict.fromkeys(sessions_since(session, world_id, change.at), "session")
    holders |= dict.fromkeys(session.exec(gateways), "gateway")
    holders |= {holder: row.kind for holder, row in acks.items()}
    found = []
    for holder, kind in sorted(holders.items()):
        row = acks.get(holder)
        found.append(
            Acknowledgement.model_validate(
                {
                    "sequence": change.sequence,
                    "phase": phase,
                    "kind": kind,
                    "holder": holder,
                    "at": row.at if row else None,
                    "late": bool(row and row.late),
                }
            )
        )
    return found
