# ruff: noqa: S608  the statements are made of constants
"""What one transaction of the fence reads about its orders: the statements of both databases, and their rows.

The condition of the partial index of `order_log` is written out as in the index: with parameters in its
place, neither database would use the index.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from activities.access.sql import TokenState
from activities.fence.log_line import LogLine
from activities.fence.rules import Activation, FenceState, Session
from qmtl_sdk.contracts.orders import OrderRequest

_FENCE = tuple(FenceState.__dataclass_fields__)


class FenceHeldError(Exception):
    """Other transactions hold the fences of `worlds`."""

    def __init__(self, worlds: Iterable[str]) -> None:
        super().__init__()
        self.worlds = frozenset(worlds)


@dataclass(frozen=True)
class FenceSnapshot:
    """Fences by world, earlier verdicts by order id, activations by world and strategy, sessions by id.

    `router_at` is when an order router last worked; empty where none ever did. `tokens` are states by id.
    """

    fences: dict[str, FenceState]
    earlier: dict[str, LogLine]
    activations: dict[tuple[str, str], Activation]
    sessions: dict[str, Session]
    router_at: str
    tokens: dict[str, TokenState]


def selects(among: str) -> dict[str, str]:
    """Return the statement of each read. `among` is the database's expression for membership in a list."""
    return {
        "worlds": f"SELECT world_id, {', '.join(_FENCE)} FROM fence WHERE world_id {among.format('worlds')}",
        "earlier": f"SELECT {', '.join(LogLine._fields)} FROM order_log "
        f"WHERE ref {among.format('ids')} AND order_log.kind IN ('accepted', 'refused', 'withheld')",
        "activations": "SELECT world_id, strategy_id, active, mode, EXISTS (SELECT 1 FROM strategy_halt "
        "WHERE strategy_halt.world_id = activation.world_id "
        "AND strategy_halt.strategy_id = activation.strategy_id) AS halted FROM activation "
        f"WHERE world_id {among.format('worlds')} AND strategy_id {among.format('strategies')}",
        "sessions": "SELECT session_id, world_id, strategy_id, execution_domain, expires_at, "
        "ended_at IS NOT NULL AS ended, actor, secret_hash, opened_at "
        f"FROM session WHERE session_id {among.format('sessions')}",
        "tokens": f"SELECT token_id, revoked_at IS NULL AS good FROM token "
        f"WHERE token_id {among.format('tokens')}",
        # A router that was stopped a moment ago counts: the next one may be starting.
        "router": "SELECT max(worked_at) FROM process WHERE name = 'router' AND state <> 'standby'",
    }


def keys_of(orders: Iterable[OrderRequest], tokens: set[str]) -> dict[str, list[str]]:
    """Return the sorted ids of worlds, orders, strategies and sessions that the orders name, and tokens."""
    of = list(orders)
    found = {
        "worlds": {o.world_id for o in of},
        "ids": {o.order_id for o in of},
        "strategies": {o.strategy_id for o in of},
        "sessions": {o.session_id for o in of},
        "tokens": tokens,
    }
    return {name: sorted(values) for name, values in found.items()}


def snapshot_of(rows: dict[str, list[tuple[Any, ...]]]) -> FenceSnapshot:
    """Build the snapshot from rows by statement. (Any: values of a database's driver.)"""
    return FenceSnapshot(
        {row[0]: FenceState(*row[1:]) for row in rows["worlds"]},
        lines_by_ref(rows["earlier"]),
        {(row[0], row[1]): Activation(bool(row[2]), row[3], bool(row[4])) for row in rows["activations"]},
        {
            row[0]: Session(row[1], row[2], row[3], row[4], bool(row[5]), *row[6:9])
            for row in rows["sessions"]
        },
        rows["router"][0][0] or "",
        {row[0]: "good" if row[1] else "revoked" for row in rows["tokens"]},
    )


def lines_by_ref(rows: list[tuple[Any, ...]]) -> dict[str, LogLine]:
    """Build rows of the log, by order id. (Any: as above.)"""
    return {line.ref: line for line in map(LogLine._make, rows)}
