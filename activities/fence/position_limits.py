"""Limits on positions and losses, checked with the ledger and open orders in the transaction of the order.

An order that brings its strategy's position nearer to zero, whatever else of that symbol is filled, is never
refused. For others, every open order counts as if it were filled. Orders of other worlds that are open do not
count for the limits of an account: their fences are not held.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from sqlalchemy import Connection, select

from activities.fence.open_order import left_to_fill
from activities.fence.rules import FenceState
from activities.ledger.exposures import (
    WHOLE_WORLD,
    Exposure,
    ExposureKey,
    account_exposures,
    exposures_of,
    gross_of,
    owners,
)
from activities.ledger.sql import positions_of
from activities.storage.tables import OpenOrderRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.ledger import Position, PositionKey
from qmtl_sdk.contracts.orders import Order, OrderRequest
from qmtl_sdk.contracts.position_limits import PositionLimits, TotalLimits
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import OrderLimits

_open = table_of(OpenOrderRow)


def limits_text(limits: OrderLimits) -> str:
    """Return what the fence row keeps of limits on positions; empty where there are none."""
    given = {
        name: found.model_dump(mode="json", exclude_none=True)
        for name, found in (("strategy", limits.strategy), ("world", limits.world))
    }
    return json.dumps(given) if any(given.values()) else ""


class _Limits(NamedTuple):
    strategy: PositionLimits
    world: TotalLimits


@lru_cache(maxsize=256)
def _limits(text: str) -> _Limits:
    found = json.loads(text) if text else {}
    return _Limits(
        PositionLimits.model_validate(found.get("strategy", {})),
        TotalLimits.model_validate(found.get("world", {})),
    )


class _Open(NamedTuple):
    """What the open orders of one position may still fill; `price`: the highest of them."""

    bought: Decimal = ZERO
    sold: Decimal = ZERO
    price: Decimal = ZERO

    def plus(self, quantity: Decimal, price: Decimal) -> "_Open":
        """Return the same with one order more (positive buys)."""
        bought, sold = (quantity, ZERO) if quantity > 0 else (ZERO, quantity)
        return _Open(EXACT.add(self.bought, bought), EXACT.add(self.sold, sold), max(self.price, price))


class AccountLimits(NamedTuple):
    """The limits of accounts, and which account a domain's orders trade in."""

    limits: Mapping[str, TotalLimits]
    account_of: Callable[[Domain], str]

    def key_of(self, request: OrderRequest) -> PositionKey:
        """Return the position that a request changes."""
        return PositionKey(request.strategy_id, self.account_of(request.execution_domain), request.symbol)


class PositionChecks:
    """Checks the orders of one transaction, which holds the fences of their worlds."""

    def __init__(
        self,
        connection: Connection,
        requests: Iterable[OrderRequest],
        fences: Mapping[str, FenceState],
        accounts: AccountLimits,
    ) -> None:
        """Read what the limits need; nothing where there are none."""
        self._accounts = accounts
        self._fences = fences
        wanted = [request for request in requests if self._is_limited(request)]
        self._worlds: dict[str, _World] = {}
        for world_id in sorted({request.world_id for request in wanted}):
            mine = [request for request in wanted if request.world_id == world_id]
            self._worlds[world_id] = _World(connection, world_id, mine, accounts)
        self._of_accounts = {
            account: _sum(account_exposures(connection, account).values())
            for account in sorted({accounts.account_of(request.execution_domain) for request in wanted})
            if account in accounts.limits
        }

    def refusal(self, order: Order) -> Refusal | None:
        """Return why an order is refused; None where it is not."""
        world = self._worlds.get(order.world_id)
        if world is None or not self._is_limited(order):
            return None
        key = self._accounts.key_of(order)
        account = key.account
        after = world.reached(key, order.signed)
        if after is None:
            return None
        limits = _limits(self._fences[order.world_id].position_limits)
        price = world.price(key, order.reference_price)
        if (reason := _of_position(limits.strategy, after, price)) is not None:
            return reason
        of_account = self._accounts.limits.get(account, TotalLimits())
        in_all = self._of_accounts.get(account, Exposure())
        added = world.added_by(key, order.signed, price or ZERO)
        for total, exposure in (
            (limits.strategy, world.exposure(order.strategy_id, account)),
            (limits.world, world.exposure(WHOLE_WORLD, account)),
            (of_account, in_all._replace(gross=EXACT.add(in_all.gross, world.waiting(account)))),
        ):
            filled = exposure._replace(gross=EXACT.add(exposure.gross, added))
            if (reason := _of_total(total, filled, price)) is not None:
                return reason
        return None

    def ordered(self, order: Order) -> None:
        """Note that an order was accepted, for those after it in the transaction."""
        world = self._worlds.get(order.world_id)
        if world is not None:
            world.add(self._accounts.key_of(order), order.signed, order.reference_price or ZERO)

    def _is_limited(self, request: OrderRequest) -> bool:
        fence = self._fences.get(request.world_id)
        account = self._accounts.account_of(request.execution_domain)
        return bool(fence and fence.position_limits) or account in self._accounts.limits


class _World:
    """Positions, open orders and exposures of a world, as far as its limits need them."""

    def __init__(
        self,
        connection: Connection,
        world_id: str,
        requests: Sequence[OrderRequest],
        accounts: AccountLimits,
    ) -> None:
        opened = list(_working(connection, world_id, accounts.account_of))
        keys = {key for key, _, _ in opened} | {accounts.key_of(item) for item in requests}
        found = positions_of(connection, world_id, keys)
        self._positions = {key: position for key, (_, position) in found.items()}
        mine = {owner for key in keys for owner in owners(key)}
        self._exposures = exposures_of(connection, world_id, mine)
        self._open: dict[PositionKey, _Open] = {}
        self._waiting = defaultdict[ExposureKey, Decimal](Decimal)
        for key, quantity, price in opened:
            self.add(key, quantity, price)

    def add(self, key: PositionKey, quantity: Decimal, price: Decimal) -> None:
        """Take an open order (positive buys)."""
        added = self.added_by(key, quantity, price)
        self._open[key] = self._open.get(key, _Open()).plus(quantity, price)
        for owner in owners(key):
            self._waiting[owner] = EXACT.add(self._waiting[owner], added)

    def price(self, key: PositionKey, price: Decimal | None) -> Decimal | None:
        """Return the higher of an order's price and the newest that the ledger knows; None without either.

        The order's is its author's word.
        """
        return max(price or ZERO, self._position(key).mark) or None

    def reached(self, key: PositionKey, quantity: Decimal) -> Decimal | None:
        """Return the position if the order and all that trade its way are filled; None for a reduction."""
        held, opened = self._position(key).quantity, self._open.get(key, _Open())
        after = exact_sum((held, quantity, opened.bought if quantity > 0 else opened.sold))
        return None if abs(after) < abs(held) and after * held >= 0 else after

    def exposure(self, strategy_id: str, account: str) -> Exposure:
        """Return the exposure of a strategy, or of the world, if all open orders are filled."""
        owner = ExposureKey(strategy_id, account)
        found = self._exposures.get(owner, Exposure())
        return found._replace(gross=EXACT.add(found.gross, self._waiting[owner]))

    def waiting(self, account: str) -> Decimal:
        """Return what the world's open orders may add to the notional at an account."""
        return self._waiting[ExposureKey(WHOLE_WORLD, account)]

    def added_by(self, key: PositionKey, quantity: Decimal, price: Decimal) -> Decimal:
        """Return what one order more may add to the notional of its position."""
        before = self._open.get(key, _Open())
        return EXACT.subtract(self._added(key, before.plus(quantity, price)), self._added(key, before))

    def _added(self, key: PositionKey, opened: _Open) -> Decimal:
        """Return what open orders may add to the notional of a position, the worse of both directions."""
        position = self._position(key)
        bought = EXACT.add(position.quantity, opened.bought)
        sold = EXACT.add(position.quantity, opened.sold)
        reached = max(bought.copy_abs(), sold.copy_abs())
        price = max(position.mark, opened.price)
        return max(EXACT.subtract(EXACT.multiply(reached, price), gross_of(position)), ZERO)

    def _position(self, key: PositionKey) -> Position:
        return self._positions.get(key, _FLAT)


_FLAT = Position()


def _sum(exposures: Iterable[Exposure]) -> Exposure:
    """Add up the exposures of worlds; the sum of their peaks is at least the peak of their sum."""
    found = list(exposures)
    return Exposure(*(exact_sum(getattr(item, name) for item in found) for name in Exposure._fields))


def _working(
    connection: Connection, world_id: str, account_of: Callable[[Domain], str]
) -> Iterator[tuple[PositionKey, Decimal, Decimal]]:
    """Read the open orders of a world: what each may still fill (positive buys), at which price."""
    columns = (_open.c[name] for name in ("strategy_id", "execution_domain", "symbol", "quantity", "price"))
    query = select(*columns, _open.c.filled_quantity).where(_open.c.world_id == world_id)
    for row in connection.execute(query):
        key = PositionKey(row.strategy_id, account_of(Domain(row.execution_domain)), row.symbol)
        yield key, left_to_fill(row.quantity, row.filled_quantity), Decimal(row.price or 0)


def _of_position(limits: PositionLimits, after: Decimal, price: Decimal | None) -> Refusal | None:
    size = after.copy_abs()
    if limits.max_position is not None and size > limits.max_position:
        return Refusal.POSITION_LIMIT
    most = limits.max_position_notional
    if most is not None and (price is None or EXACT.multiply(size, price) > most):
        return Refusal.POSITION_LIMIT
    return None


def _of_total(limits: TotalLimits, exposure: Exposure, price: Decimal | None) -> Refusal | None:
    most = limits.max_gross_notional
    if most is not None and (price is None or exposure.gross > most):
        return Refusal.GROSS_LIMIT
    if limits.max_loss is not None and exposure.profit < -limits.max_loss:
        return Refusal.LOSS_LIMIT
    fallen = EXACT.subtract(exposure.peak, exposure.profit)
    if limits.max_drawdown is not None and fallen > limits.max_drawdown:
        return Refusal.DRAWDOWN_LIMIT
    return None
