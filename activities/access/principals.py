"""Principals in the database: who may have tokens."""

from datetime import datetime

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from activities.storage.database import Database
from activities.storage.tables import PrincipalRow, TokenRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from qmtl_sdk.contracts.access import Principal, require_free
from qmtl_sdk.contracts.errors import QmtlError


class SqlPrincipalStore:
    """Registers, lists and disables principals."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, actor: str) -> Principal:
        """Register a principal, or enable one again. Idempotent.

        Raises QmtlError: E_PRINCIPAL_RESERVED; E_PRINCIPAL_EXISTS where another differs in case only.
        """
        require_free(name)
        with self._database.write(actor) as tx:
            lock_principal(tx, name)
            row = tx.session.get(PrincipalRow, name)
            if row is not None and row.disabled_at is None:
                return _principal(row)
            if row is None:
                _require_another_name(tx.session, name)
            action = "principal.added" if row is None else "principal.enabled"
            row = row or PrincipalRow(name=name, created_by=actor, created_at=utc_now())
            row.disabled_by, row.disabled_at = "", None
            tx.session.add(row)
            tx.record(RecordedChange(action, "", name, after={"name": name}))
            return _principal(row)

    def add_if_new(self, name: str, actor: str) -> None:
        """Register a principal unless it is known already, enabled or not."""
        with self._database.write(actor) as tx:
            row = PrincipalRow(name=name, created_by=actor, created_at=utc_now())
            if tx.insert_new([row]):
                tx.record(RecordedChange("principal.added", "", name, after={"name": name}))

    def all(self) -> list[Principal]:
        """List all principals by name."""
        with self._database.read() as session:
            return [_principal(row) for row in session.exec(select(PrincipalRow).order_by(PrincipalRow.name))]

    def disable(self, name: str, actor: str) -> Principal:
        """Disable a principal, and revoke all its tokens. Idempotent.

        Raises QmtlError (E_PRINCIPAL_UNKNOWN).
        """
        with self._database.write(actor) as tx:
            lock_principal(tx, name)
            row = _row(tx.session, name)
            if row.disabled_at is None:
                row.disabled_by, row.disabled_at = actor, utc_now()
                tx.session.add(row)
                mine = (col(TokenRow.subject) == name, col(TokenRow.revoked_at).is_(None))
                tx.connection.execute(update(TokenRow).where(*mine).values(revoked_at=row.disabled_at))
                tx.record(RecordedChange("principal.disabled", "", name, after={"name": name}))
            return _principal(row)


def lock_principal(tx: Transaction, name: str) -> None:
    """Take the lock under which a principal and their tokens are changed."""
    tx.lock(f"principal:{name.lower()}")


def require_enabled(tx: Transaction, name: str) -> None:
    """Check that a principal may have tokens, and keep it so until the transaction ends.

    Raises QmtlError: E_PRINCIPAL_UNKNOWN, E_PRINCIPAL_DISABLED.
    """
    lock_principal(tx, name)
    row = _row(tx.session, name)
    if row.disabled_at is not None:
        raise QmtlError(
            "E_PRINCIPAL_DISABLED", f"{name} was disabled by {row.disabled_by}", "an owner enables it again"
        )


def _row(session: Session, name: str) -> PrincipalRow:
    row = session.get(PrincipalRow, name)
    if row is None:
        raise QmtlError(
            "E_PRINCIPAL_UNKNOWN",
            f"{name[:64]} is not registered",
            f"an owner registers it: qmtl principal add {name[:64]}",
        )
    return row


def _require_another_name(session: Session, name: str) -> None:
    """Raise QmtlError (E_PRINCIPAL_EXISTS) where a name differs from another in case only."""
    query = select(PrincipalRow.name).where(func.lower(PrincipalRow.name) == name.lower())
    other = session.exec(query).first()
    if other is not None:
        raise QmtlError(
            "E_PRINCIPAL_EXISTS", f"{name} differs from {other} in case only", "choose another name"
        )


def _principal(row: PrincipalRow) -> Principal:
    return Principal(
        name=row.name,
        created_by=row.created_by,
        created_at=datetime.fromisoformat(row.created_at),
        disabled_by=row.disabled_by,
        disabled_at=datetime.fromisoformat(row.disabled_at) if row.disabled_at else None,
    )
