"""The targets of one transaction of the fence: what they are compared with, and what is stored of them."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from activities.fence.cancelling import Selection, cancel_open
from activities.fence.open_order import left_to_fill
from activities.fence.rules import FLATTEN
from activities.fence.scales import weights_of
from activities.fence.sizing import (
    SizedTarget,
    SymbolState,
    TargetDecision,
    WorkingQuantity,
    WorldSizing,
    decide_target,
)
from activities.ledger.sql import positions_of
from activities.storage.keys import has_key
from activities.storage.tables import FenceRow, OpenOrderRow, TargetRow, WorldRow
from activities.storage.transactions import Transaction, table_of, utc_now
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.ledger import PositionKey
from qmtl_sdk.contracts.orders import Order, OrderState
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import MAX_TARGETS, Target
from qmtl_sdk.contracts.worlds import WorldSpec

_target = table_of(TargetRow)
_open = table_of(OpenOrderRow)
_world = table_of(WorldRow)

_REPLACED = "its strategy's target has changed"

# Worlds whose sizings are kept.
_KNOWN_WORLDS = 1000


class TargetKey(NamedTuple):
    """Of what a target is: the key of its row."""

    world_id: str
    strategy_id: str
    execution_domain: str
    symbol: str


class WorldSizings:
    """What worlds' specs say about sizes, by their etags: a spec may have thousands of streams.

    Threads may share one.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._found: dict[str, tuple[str, WorldSizing]] = {}

    def of(self, connection: Connection, world_ids: Iterable[str]) -> dict[str, WorldSizing]:
        """Return those of worlds. A spec is read again only when it has changed."""
        wanted = sorted(world_ids)
        etags = select(_world.c.world_id, _world.c.etag).where(_world.c.world_id.in_(wanted))
        found = dict[str, WorldSizing]()
        for row in connection.execute(etags).all():
            etag, sizing = self._found.get(row.world_id, ("", None))
            found[row.world_id] = (
                sizing if sizing and etag == row.etag else self._read(connection, row.world_id)
            )
        return found

    def _read(self, connection: Connection, world_id: str) -> WorldSizing:
        row = connection.execute(select(_world.c.etag, _world.c.spec).where(_world.c.world_id == world_id))
        etag, spec = row.one()
        sizing = WorldSizing(WorldSpec.model_validate_json(spec))
        with self._mutex:
            if len(self._found) >= _KNOWN_WORLDS:
                self._found.pop(next(iter(self._found)))
            self._found[world_id] = etag, sizing
        return sizing


class Targets:
    """Decides about targets of one transaction, which holds the fences of their worlds."""

    def __init__(
        self,
        tx: Transaction,
        targets: Sequence[Target],
        account_of: Callable[[Domain], str],
        sizings: WorldSizings,
    ) -> None:
        """Read what is known of the targets. `account_of`: the account that holds a domain's positions."""
        self._tx = tx
        self._account_of = account_of
        self._sizes: dict[TargetKey, SizedTarget] = {}
        connection, keys = tx.connection, {_key(target) for target in targets}
        self._holdings = holdings_of(connection, keys, account_of)
        self._worlds = sizings.of(connection, {key.world_id for key in keys})
        self._weights = weights_of(connection, {(key.world_id, key.strategy_id) for key in keys})
        new = {key for key, holding in self._holdings.items() if holding.target is None}
        self._left = _left(connection, {key[:3] for key in new})

    def decide(self, target: Target, opened_at: str, is_rebalanced: bool) -> TargetDecision:
        """Decide what is ordered for a target. `opened_at`: when its session was opened.

        While its world `is_rebalanced`, nothing is ordered for a target that is what it was: the run does.
        """
        key = _key(target)
        holding = self._holdings[key]
        if holding.target is None and not self._left[key[:3]]:
            return TargetDecision(refusal=Refusal.TARGET_LIMIT)
        found = decide_target(
            target,
            holding,
            self._weights.get((target.world_id, target.strategy_id), Decimal(0)),
            self._worlds[target.world_id],
            self._account_of(target.execution_domain),
            opened_at,
        )
        if is_rebalanced and found.size is not None and found.size == holding.target:
            return TargetDecision(size=found.size)
        return found

    def cancel(self, target: Target, decision: TargetDecision) -> None:
        """Cancel what trades against a target: that is right even where what it wants is too much."""
        if not decision.cancel:
            return
        key = _key(target)
        fence = self._tx.session.get_one(FenceRow, target.world_id, populate_existing=True)
        cancel_open(self._tx, fence, _REPLACED, True, Selection(order_ids=sorted(decision.cancel)))
        holding = self._holdings[key]
        left = (
            replace(item, ending=True) if item.order_id in decision.cancel else item
            for item in holding.working
            if item.order_id not in decision.cancel or not item.unsent
        )
        self._holdings[key] = replace(holding, working=tuple(left))

    def accept(self, target: Target, decision: TargetDecision) -> None:
        """Take a decision that the rules allow: cancel what trades against it, and keep its size."""
        self.cancel(target, decision)
        key = _key(target)
        holding = self._holdings[key]
        if decision.size is None or decision.size == holding.target:
            return
        if holding.target is None:
            self._left[key[:3]] -= 1
        size = replace(decision.size, updated_at=utc_now())
        self._sizes[key] = size
        self._holdings[key] = replace(holding, target=size)

    def ordered(self, order: Order) -> None:
        """Note that an order was accepted, for targets of its symbol in the same transaction."""
        key = _key(order)
        if key in self._holdings:
            self._holdings[key] = self._holdings[key].ordered(order)

    def store(self) -> None:
        """Write the sizes that are new."""
        if self._sizes:
            self._tx.upsert_values(
                _target, [target_row(key, size) for key, size in sorted(self._sizes.items())]
            )


def _key(item: Target | Order) -> TargetKey:
    return TargetKey(item.world_id, item.strategy_id, item.execution_domain.value, item.symbol)


def sized_target(row: Any) -> SizedTarget:
    """Return the target of a row. (Any: the columns of `TargetRow`.)"""
    return SizedTarget(
        row.unit,
        Decimal(row.value),
        Decimal(row.weight),
        Decimal(row.capital) if row.capital else None,
        Decimal(row.price) if row.price else None,
        Decimal(row.units),
        row.decided_at,
        row.updated_at,
    )


def target_row(key: TargetKey, size: SizedTarget) -> dict[str, str]:
    """Return the values of a target's row."""
    return {
        **key._asdict(),
        "unit": size.unit,
        "value": str(size.value),
        "weight": str(size.weight),
        "capital": _text(size.capital),
        "price": _text(size.price),
        "units": str(size.units),
        "decided_at": size.decided_at,
        "updated_at": size.updated_at,
    }


def _text(value: Decimal | None) -> str:
    return "" if value is None else str(value)


def holdings_of(
    connection: Connection, keys: Iterable[TargetKey], account_of: Callable[[Domain], str]
) -> dict[TargetKey, SymbolState]:
    """Read targets, positions and open orders."""
    wanted = sorted(keys)
    targets = {
        TargetKey(*row[:4]): sized_target(row)
        for row in connection.execute(select(_target).where(has_key(_target, TargetKey._fields, wanted)))
    }
    held = dict[TargetKey, tuple[Decimal, Decimal]]()
    for world_id in sorted({key.world_id for key in wanted}):
        of_position = {
            PositionKey(key.strategy_id, account_of(Domain(key.execution_domain)), key.symbol): key
            for key in wanted
            if key.world_id == world_id
        }
        for position_key, (_, position) in positions_of(connection, world_id, of_position).items():
            held[of_position[position_key]] = position.quantity, position.mark
    working = defaultdict[TargetKey, list[WorkingQuantity]](list)
    names = ("world_id", "strategy_id", "symbol")
    shorter = sorted({(key.world_id, key.strategy_id, key.symbol) for key in wanted})
    for row in connection.execute(select(_open).where(has_key(_open, names, shorter))):
        key = TargetKey(row.world_id, row.strategy_id, row.execution_domain, row.symbol)
        left = left_to_fill(row.quantity, row.filled_quantity)
        unsent = row.state == OrderState.ACCEPTED.value
        ending = bool(row.cancel_reason)
        item = WorkingQuantity(row.order_id, left, unsent, row.origin == FLATTEN, ending)
        working[key].append(item)
    return {
        key: SymbolState(targets.get(key), *held.get(key, (Decimal(0), Decimal(0))), tuple(working[key]))
        for key in wanted
    }


def _left(connection: Connection, strategies: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Count how many symbols each strategy may still name in a domain of a world."""
    wanted = sorted(strategies)
    if not wanted:
        return {}
    names = TargetKey._fields[:3]
    columns = [_target.c[name] for name in names]
    query = select(*columns, func.count()).where(has_key(_target, names, wanted)).group_by(*columns)
    counted = {tuple(row[:3]): row[3] for row in connection.execute(query)}
    return {key: MAX_TARGETS - counted.get(key, 0) for key in wanted}
