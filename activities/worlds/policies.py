"""Policies of a world in the database: versions, and the default that judges."""

from sqlalchemy import func
from sqlmodel import Session, col, select

from activities.storage.database import Database
from activities.storage.tables import PolicyRow
from activities.storage.transactions import RecordedChange, Transaction, utc_now
from activities.worlds.specs import world_row
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy


class SqlPolicyStore:
    """Reads the versions of a world's policy, which are never changed. `SqlRuleChanges` adds them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def policy(self, world_id: str, version: int | None = None) -> Policy:
        """Read a version, the default unless given. Raises QmtlError: E_POLICY_MISSING, E_POLICY_UNKNOWN."""
        with self._database.read() as session:
            world = world_row(session, world_id)
            wanted = version if version is not None else world.policy_version
            if wanted is None:
                raise QmtlError(
                    "E_POLICY_MISSING",
                    f"world {world_id} has no policy",
                    f"add one: qmtl world policy add {world_id} FILE",
                )
            return policy_version(session, world_id, wanted)

    def policies(self, world_id: str) -> list[Policy]:
        """List all versions, oldest first."""
        with self._database.read() as session:
            world_row(session, world_id)
            rows = session.exec(
                select(PolicyRow).where(PolicyRow.world_id == world_id).order_by(col(PolicyRow.version))
            )
            return [Policy.model_validate_json(row.body) for row in rows]


def policy_version(session: Session, world_id: str, version: int) -> Policy:
    """Read a version of a world's policy. Raises QmtlError (E_POLICY_UNKNOWN)."""
    row = session.get(PolicyRow, (world_id, version))
    if row is None:
        raise QmtlError(
            "E_POLICY_UNKNOWN",
            f"world {world_id} has no policy version {version}",
            f"qmtl world policy list {world_id} lists them",
        )
    return Policy.model_validate_json(row.body)


def insert_policy(tx: Transaction, world_id: str, policy: Policy) -> Policy:
    """Add a version, which becomes the default. The caller holds the world.

    Raises QmtlError: E_POLICY_VERSION where the policy names a version that is not the next one.
    """
    world = world_row(tx.session, world_id)
    versions = select(func.max(PolicyRow.version)).where(PolicyRow.world_id == world_id)
    newest = tx.session.exec(versions).one() or 0
    if policy.version is not None and policy.version != newest + 1:
        raise QmtlError(
            "E_POLICY_VERSION",
            f"the policy says version {policy.version}, the next one of {world_id} is {newest + 1}",
            "leave the version out, or write the next one",
            next=newest + 1,
        )
    before = world.policy_version
    row = _policy_row(world_id, policy, newest + 1)
    tx.session.add(row)
    world.policy_version = row.version
    tx.session.add(world)
    data = {"world_id": world_id, "version": row.version}
    tx.record(
        RecordedChange(
            "policy.added",
            world_id,
            f"{world_id}@{row.version}",
            before={"version": before},
            after={"version": row.version},
            event="policy_updated",
            data=data,
        )
    )
    return Policy.model_validate_json(row.body)


def make_default(tx: Transaction, world_id: str, version: int) -> Policy:
    """Make a version that exists the default. The caller holds the world."""
    row = tx.session.get_one(PolicyRow, (world_id, version))
    world = world_row(tx.session, world_id)
    before = world.policy_version
    world.policy_version = version
    tx.session.add(world)
    data = {"world_id": world_id, "version": version}
    tx.record(
        RecordedChange(
            "policy.default",
            world_id,
            f"{world_id}@{version}",
            before={"version": before},
            after={"version": version},
            event="policy_updated",
            data=data,
        )
    )
    return Policy.model_validate_json(row.body)


def add_first_policy(tx: Transaction, world_id: str, policy: Policy) -> None:
    """Store the policy that a world is created with, as version 1."""
    tx.session.add(_policy_row(world_id, policy, 1))


def _policy_row(world_id: str, policy: Policy, version: int) -> PolicyRow:
    stored = policy.model_copy(update={"world": world_id, "version": version})
    body = stored.model_dump_json(by_alias=True)
    return PolicyRow(world_id=world_id, version=version, body=body, created_at=utc_now())
