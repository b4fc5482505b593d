"""What each position becomes by a run, and the sizes of targets that follow from the new shares.

A target that is held gets the size that the plan leads to, where that is within a lot of what the target
means at its new weight: so its next bar orders nothing. Where the plan leads elsewhere, as where an order was
open when it was made, or where a share was rounded away before, the target gets the size that it means.
"""

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import select

from activities.fence.scales import weights_of
from activities.fence.sizing import SizedTarget, resized
from activities.fence.targets import TargetKey, WorldSizings, sized_target, target_row
from activities.ledger.sql import held_positions
from activities.order_settings import Accounts
from activities.rebalancing.trades import Place, PlannedTrade
from activities.storage.tables import TargetRow
from activities.storage.transactions import Transaction, table_of
from qmtl_sdk.contracts.amounts import EXACT, exact_sum
from qmtl_sdk.contracts.ledger import Position, PositionKey

_target = table_of(TargetRow)


class Goal(NamedTuple):
    """What a position becomes by a run (units). `follows`: it is the size of its strategy's target."""

    units: Decimal
    follows: bool


class Goals:
    """Sizes the targets of worlds whose shares have changed."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = {domain.value: account for domain, account in accounts.items()}
        self._sizings = WorldSizings()

    def set(
        self, tx: Transaction, worlds: Sequence[str], trades: Sequence[PlannedTrade]
    ) -> dict[Place, Goal]:
        """Size the targets of worlds. Returns the goal of each trade.

        The transaction holds the fences of the worlds, and has changed their shares and crossed.
        """
        goals = {
            trade.place: Goal(exact_sum((trade.held, trade.crossed, trade.quantity)), False)
            for trade in trades
        }
        for world_id in worlds:
            self._size(tx, world_id, goals)
        return goals

    def _size(self, tx: Transaction, world_id: str, goals: dict[Place, Goal]) -> None:
        rows = tx.connection.execute(select(_target).where(_target.c.world_id == world_id)).all()
        if not rows:
            return
        weights = weights_of(tx.connection, {(world_id, row.strategy_id) for row in rows})
        held = held_positions(tx.connection, world_id)
        sizing = self._sizings.of(tx.connection, {world_id})[world_id]
        new = dict[TargetKey, SizedTarget]()
        for row in rows:
            account = self._accounts[row.execution_domain]
            place = (world_id, row.strategy_id, account, row.symbol)
            last, lot = sized_target(row), sizing.instrument(account, row.symbol).lot
            wanted = resized(last, weights.get((world_id, row.strategy_id), last.weight), lot)
            now = held.get(PositionKey(*place[1:]), Position()).quantity
            planned = goals.get(place, Goal(now, False)).units
            if abs(EXACT.subtract(planned, wanted.units)) <= lot:
                wanted = replace(wanted, units=planned)
            if place in goals:
                goals[place] = Goal(wanted.units, True)
            new[TargetKey(*row[:4])] = wanted
        tx.upsert_values(_target, [target_row(key, size) for key, size in sorted(new.items())])
