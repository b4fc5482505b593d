"""Worlds in the database: specs, bindings of strategies, and the world's view of the graph."""

from datetime import datetime

from sqlalchemy import update
from sqlmodel import Session, col, select

from activities.storage.database import Database
from activities.storage.tables import BindingRow, WorldNodeRow, WorldRow
from activities.storage.transactions import Transaction, utc_now
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.world_changes import merged_spec
from qmtl_sdk.contracts.worlds import BindingInfo, World, WorldNodeRef, WorldSpec, WorldUpdate

# Nodes that one request lists.
_NODES = 10_000


class SqlWorldStore:
    """Reads worlds. `SqlFenceStore` creates and changes them, together with their fences."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def world(self, world_id: str) -> World:
        """Read one world. Raises QmtlError (E_WORLD_UNKNOWN)."""
        with self._database.read() as session:
            return world_of(world_row(session, world_id))

    def worlds(self) -> list[World]:
        """List all worlds, oldest first."""
        with self._database.read() as session:
            rows = session.exec(select(WorldRow).order_by(col(WorldRow.created_at)))
            return [world_of(row) for row in rows]

    def bindings(self, world_id: str) -> list[BindingInfo]:
        """List the strategies bound to a world, oldest first. Raises QmtlError (E_WORLD_UNKNOWN)."""
        query = select(BindingRow).where(BindingRow.world_id == world_id).order_by(col(BindingRow.seq))
        with self._database.read() as session:
            world_row(session, world_id)
            return [
                BindingInfo(
                    world_id=row.world_id,
                    strategy_id=row.strategy_id,
                    name=row.name,
                    created_at=datetime.fromisoformat(row.created_at),
                )
                for row in session.exec(query)
            ]

    def nodes(self, world_id: str, execution_domain: str | None = None) -> list[WorldNodeRef]:
        """List the nodes of a world, or of one of its domains: 10,000 at most.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        query = (
            select(WorldNodeRow)
            .where(WorldNodeRow.world_id == world_id)
            .order_by(col(WorldNodeRow.execution_domain), col(WorldNodeRow.node_id))
            .limit(_NODES)
        )
        if execution_domain is not None:
            query = query.where(WorldNodeRow.execution_domain == execution_domain)
        with self._database.read() as session:
            world_row(session, world_id)
            return [WorldNodeRef.model_validate(row.model_dump()) for row in session.exec(query)]


def insert_world(tx: Transaction, spec: WorldSpec, policy: Policy | None) -> tuple[WorldRow, bool]:
    """Insert a world, or find the same one. Returns its row and whether it is new.

    Raises QmtlError: E_WORLD_EXISTS where another world has that name.
    """
    row = WorldRow(
        world_id=spec.world,
        spec=spec.model_dump_json(),
        etag=hash_of(spec.json_dict()),
        created_at=utc_now(),
        policy_version=1 if policy else None,
    )
    if tx.insert_new([row]):
        return row, True
    found = world_row(tx.session, spec.world)
    if found.etag != row.etag:
        raise QmtlError(
            "E_WORLD_EXISTS",
            f"there is a world {spec.world} already, and it is another one",
            f"choose another name; qmtl world show {spec.world} prints the one there is",
        )
    return found, False


def changed_spec(tx: Transaction, row: WorldRow, before: WorldSpec, change: WorldUpdate) -> WorldSpec:
    """Write the given parts of `change` into the world's row. Returns the new spec."""
    after = merged_spec(before, change)
    row.spec = after.model_dump_json()
    row.etag = hash_of(after.json_dict())
    row.state = change.state or row.state
    tx.session.add(row)
    return after


def pin_fingerprint(tx: Transaction, world: WorldRow, fingerprint: str) -> None:
    """Pin the dataset that the world's live strategies are based on."""
    world.pinned_fingerprint = fingerprint
    tx.session.add(world)


def set_node_states(
    tx: Transaction, world_id: str, execution_domain: str, node_ids: tuple[str, ...], state: str
) -> None:
    """Set the state of nodes in the world's view of the graph, adding those that are missing.

    Their rows are locked in the order of their keys: evidence of strategies that share nodes changes them
    too.
    """
    now = utc_now()
    of_nodes = (
        col(WorldNodeRow.world_id) == world_id,
        col(WorldNodeRow.execution_domain) == execution_domain,
        col(WorldNodeRow.node_id).in_(node_ids),
    )
    tx.insert_new(
        [
            WorldNodeRow(
                world_id=world_id,
                node_id=node_id,
                execution_domain=execution_domain,
                eval_key="",
                state=state,
                updated_at=now,
            )
            for node_id in sorted(node_ids)
        ]
    )
    in_order = select(WorldNodeRow.node_id).where(*of_nodes).order_by(col(WorldNodeRow.node_id))
    tx.connection.execute(in_order.with_for_update())
    tx.connection.execute(update(WorldNodeRow).where(*of_nodes).values(state=state, updated_at=now))


def world_row(session: Session, world_id: str) -> WorldRow:
    """Read a world's row. Raises QmtlError (E_WORLD_UNKNOWN) with the names that are nearest."""
    row = session.get(WorldRow, world_id)
    if row is None:
        names = list(session.exec(select(WorldRow.world_id)))
        known = f"known: {', '.join(names[:10])}" if names else "there are none yet: qmtl world create FILE"
        raise QmtlError("E_WORLD_UNKNOWN", f"there is no world {world_id!r}{nearest(world_id, names)}", known)
    return row


def world_of(row: WorldRow) -> World:
    """Convert a world's row."""
    return World(
        spec=WorldSpec.model_validate_json(row.spec),
        created_at=datetime.fromisoformat(row.created_at),
        policy_version=row.policy_version,
        etag=row.etag,
        pinned_fingerprint=row.pinned_fingerprint,
        state=row.state,
    )
