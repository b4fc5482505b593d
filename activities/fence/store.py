"""The fence of each world in the database: create and change worlds, halt them, read their activations.

A world's row and its fence row change in one transaction, so these operations belong to the fence.
"""

from datetime import datetime

from sqlalchemy import text
from sqlmodel import col, select

from activities.fence.activations import activation_hashes, activation_sequence, activations_of
from activities.fence.halts import HALT_WAIT_S, halt, halt_reason
from activities.fence.rules import DRAINING, FROZEN
from activities.fence.state import fence_status, locked_fence, new_fence, set_limits
from activities.storage.database import Database
from activities.storage.tables import ActivationRow, FenceRow
from activities.storage.transactions import RecordedChange, Transaction
from activities.worlds.edges import LIVE_EDGE, read_edge, write_edge
from activities.worlds.policies import add_first_policy
from activities.worlds.specs import changed_spec, insert_world, world_of, world_row
from qmtl_sdk.contracts.applies import FenceStatus
from qmtl_sdk.contracts.decisions import ActivationEnvelope
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy import Policy
from qmtl_sdk.contracts.topic_state import combined_hash
from qmtl_sdk.contracts.worlds import World, WorldSpec, WorldUpdate

TRADES = text("activation.active AND activation.mode IN ('paper', 'live')")
"""The condition of the index `activation_trading`, in its exact words."""


class SqlFenceStore:
    """Worlds together with what their fences check."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, spec: WorldSpec, policy: Policy | None, actor: str) -> World:
        """Create a world with its fence. Idempotent: the same spec returns the world that is there.

        Raises QmtlError: E_WORLD_EXISTS where another world has that name.
        """
        with self._database.write(actor) as tx:
            row, is_new = insert_world(tx, spec, policy)
            if not is_new:
                return world_of(row)
            if policy:
                add_first_policy(tx, spec.world, policy)
            tx.session.add(new_fence(spec))
            write_edge(tx, spec.world, LIVE_EDGE, False, "closed until an apply opens it")
            after = {"spec": spec.json_dict(), "policy_version": row.policy_version}
            tx.record(RecordedChange("world.created", spec.world, spec.world, after=after))
            return world_of(row)

    def override(self, world_id: str, edge: EdgeOverride, actor: str) -> EdgeOverride:
        """Close or open the edge to live.

        Raises QmtlError: E_WORLD_UNKNOWN; E_EDGE_LIVE for opening it, which only an apply does;
        E_EDGE_NO_EFFECT for any other edge.
        """
        if (edge.src, edge.dst) != LIVE_EDGE:
            raise QmtlError(
                "E_EDGE_NO_EFFECT",
                f"nothing passes from {edge.src[:64]} to {edge.dst[:64]}, open or closed",
                f"live orders need the edge from {LIVE_EDGE[0]} to {LIVE_EDGE[1]}; "
                "qmtl world halt W stops every order",
            )
        with self._database.write(actor) as tx:
            tx.lock(f"world:{world_id}")
            fence = locked_fence(tx, world_id)
            if edge.active:
                raise QmtlError(
                    "E_EDGE_LIVE",
                    "only an apply opens an edge to live",
                    "request one: qmtl world apply W --to live",
                )
            before = read_edge(tx.session, world_id, LIVE_EDGE)
            fence.live_edge = False
            fence.edge_closings += 1
            tx.session.add(fence)
            now = write_edge(tx, world_id, LIVE_EDGE, False, edge.reason)
            tx.record(
                RecordedChange(
                    "edge.overridden",
                    world_id,
                    " → ".join(LIVE_EDGE),
                    before=before,
                    after={"active": False, "reason": edge.reason},
                )
            )
            return edge.model_copy(update={"updated_at": datetime.fromisoformat(now)})

    def status(self, world_id: str) -> FenceStatus:
        """Read whether the world accepts orders. Raises QmtlError (E_WORLD_UNKNOWN)."""
        with self._database.read() as session:
            world_row(session, world_id)
            return fence_status(session, world_id)

    def halt(self, world_id: str, actor: str, reason: str, wait_s: float = HALT_WAIT_S) -> bool:
        """Close the world's fence at once, whatever else runs, until someone resumes it.

        Returns False where it was halted already. Raises QmtlError: E_WORLD_UNKNOWN; E_UNAVAILABLE where
        another transaction holds the fence for `wait_s`.
        """
        with self._database.write(actor) as tx:
            tx.limit_lock_waits(wait_s)
            fence = locked_fence(tx, world_id)
            if fence.halted:
                return False
            halt(tx, fence, halt_reason(actor, reason))
            return True

    def world_ids(self) -> list[str]:
        """List the ids of all worlds."""
        with self._database.read() as session:
            return list(session.exec(select(FenceRow.world_id).order_by(col(FenceRow.world_id))))

    def activations(self, world_id: str, strategy_id: str | None = None) -> list[ActivationEnvelope]:
        """Read the activations of a world's strategies, or of one strategy, as the fence has them now.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        with self._database.read() as session:
            world_row(session, world_id)
            fence = session.get_one(FenceRow, world_id)
            update = {
                "epoch": fence.epoch,
                "freeze": fence.state in (FROZEN, DRAINING),
                "drain": fence.state == DRAINING,
            }
            halted = {"halted": True} if fence.halted else {}
            return [
                item.model_copy(update={**update, **halted})
                for item in activations_of(session, world_id, strategy_id)
            ]

    def activation_hash(self, world_id: str) -> tuple[int, str]:
        """Read the sequence of the world's newest activation and the hash of all of them.

        Raises QmtlError (E_WORLD_UNKNOWN).
        """
        with self._database.read() as session:
            world_row(session, world_id)
            return activation_sequence(session, world_id), combined_hash(activation_hashes(session, world_id))

    def trading_until(self, moment: datetime) -> list[str]:
        """List worlds where a strategy trades on a decision that is fresh no longer than `moment`."""
        trading = select(ActivationRow.world_id).where(TRADES)
        until = moment.isoformat(timespec="microseconds")
        stale = select(FenceRow.world_id).where(
            FenceRow.fresh_until < until, col(FenceRow.world_id).in_(trading)
        )
        with self._database.read() as session:
            return list(session.exec(stale.order_by(col(FenceRow.world_id))))


def update_world(tx: Transaction, world_id: str, change: WorldUpdate, actor: str) -> World:
    """Change the given parts of a world, which the caller holds. The next order meets the new limits.

    Archiving a world halts it. Raises QmtlError (E_WORLD_UNKNOWN).
    """
    fence = locked_fence(tx, world_id)
    row = world_row(tx.session, world_id)
    before = WorldSpec.model_validate_json(row.spec)
    after = changed_spec(tx, row, before, change)
    set_limits(tx, fence, after, active=row.state == "active")
    if row.state == "archived" and not fence.halted:
        halt(tx, fence, f"archived by {actor}")
    given = change.model_dump(mode="json", exclude_none=True)
    old = before.json_dict()
    tx.record(
        RecordedChange(
            "world.updated",
            world_id,
            world_id,
            before={name: old.get(name) for name in given},
            after=given,
        )
    )
    return world_of(row)
