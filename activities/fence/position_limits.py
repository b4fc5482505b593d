"""Limits on positions and losses, checked with the ledger and open orders in the transaction of the order.

An order that brings its strategy's position nearer to zero, whatever else of that symbol is filled, is never
refused. For others, every open order counts as if it were filled. Orders of other worlds that are open do not
count for the limits of an account: their fences are not held.

An order is valued at the highest of its own price, which is its author's word, the position's mark, and the
newest mark of the symbol at the account, whoever traded it. Where there is no mark, the price counts that the
world's `order_limits.prices` names. Where orders reach a broker, a limit of value refuses an order without.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple, Self

from sqlalchemy import Connection, select

from activities.fence.known_prices import known_prices
from activities.fence.open_order import left_to_fill
from activities.fence.rules import FenceState
from activities.fence.stored_limits import StoredLimits, stored_limits
from activities.ledger.exposures import (
    WHOLE_WORLD,
    AccountTotals,
    ExposureKey,
    gross_of,
    owners,
    totals_at_account,
    totals_of,
)
from activities.ledger.sql import positions_of
from activities.order_settings import OrdersSettings
from activities.storage.tables import OpenOrderRow
from activities.storage.transactions import table_of
from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.ledger import Position, PositionKey
from qmtl_sdk.contracts.orders import Order, OrderRequest
from qmtl_sdk.contracts.position_limits import PositionLimits, TotalLimits
from qmtl_sdk.contracts.refusals import Refusal

_open = table_of(OpenOrderRow)


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
    """The limits of accounts, which account a domain's orders trade in, and which domains reach a broker."""

    limits: Mapping[str, TotalLimits]
    account_of: Callable[[Domain], str]
    brokered: frozenset[Domain]

    @classmethod
    def of(cls, settings: OrdersSettings) -> Self:
        """Return those of settings."""
        return cls(settings.account_limits, settings.account_of, settings.brokered)

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
            given = stored_limits(fences[world_id].position_limits).prices
            self._worlds[world_id] = _World(connection, world_id, mine, accounts, given)
        self._of_accounts = {
            account: _sum(totals_at_account(connection, account).values())
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
        fence = self._fences[order.world_id]
        limits = stored_limits(fence.position_limits)
        price = world.price(key, order.reference_price)
        if world.known_price(key) is None and self._needs_price(order, fence, limits):
            return Refusal.UNKNOWN_PRICE
        if (reason := _of_position(limits.strategy, after, price)) is not None:
            return reason
        of_account = self._accounts.limits.get(account, TotalLimits())
        in_all = self._of_accounts.get(account, AccountTotals())
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

    def known_price(self, order: Order) -> Decimal | None:
        """Return the price of an order's symbol that the service knows, where limits may need it."""
        world = self._worlds.get(order.world_id)
        return world.known_price(self._accounts.key_of(order)) if world is not None else None

    def ordered(self, order: Order) -> None:
        """Note that an order was accepted, for those after it in the transaction."""
        world = self._worlds.get(order.world_id)
        if world is not None:
            world.add(self._accounts.key_of(order), order.signed, order.reference_price or ZERO)

    def _is_limited(self, request: OrderRequest) -> bool:
        fence = self._fences.get(request.world_id)
        account = self._accounts.account_of(request.execution_domain)
        limited = fence is not None and (fence.position_limits or fence.max_notional)
        return bool(limited) or account in self._accounts.limits

    def _needs_price(self, order: Order, fence: FenceState, limits: StoredLimits) -> bool:
        """Return whether a limit values an order that reaches a broker: an author's price will not do."""
        if order.execution_domain not in self._accounts.brokered:
            return False
        account = self._accounts.account_of(order.execution_domain)
        of_account = self._accounts.limits.get(account, TotalLimits()).max_gross_notional
        return bool(fence.max_notional) or limits.of_value or of_account is not None


class _World:
    """Positions, open orders and exposures of a world, as far as its limits need them."""

    def __init__(
        self,
        connection: Connection,
        world_id: str,
        requests: Sequence[OrderRequest],
        accounts: AccountLimits,
        given: Mapping[str, Decimal],
    ) -> None:
        opened = list(_working(connection, world_id, accounts.account_of))
        keys = {key for key, _, _ in opened} | {accounts.key_of(item) for item in requests}
        found = positions_of(connection, world_id, keys)
        self._positions = {key: position for key, (_, position) in found.items()}
        self._known = known_prices(connection, keys, given)
        mine = {owner for key in keys for owner in owners(key)}
        self._exposures = totals_of(connection, world_id, mine)
        self._open: dict[PositionKey, _Open] = {}
        self._waiting = defaultdict[ExposureKey, Decimal](Decimal)
        for key, quantity, price in opened:
            self.add(key, quantity, price)

    def add(self, key: PositionKey, quantity: Decimal, price: Decimal) -> None:
        """Take an open order (positive buys)."""
        price = self.price(key, price) or ZERO
        added = self.added_by(key, quantity, price)
        self._open[key] = self._open.get(key, _Open()).plus(quantity, price)
        for owner in owners(key):
            self._waiting[owner] = EXACT.add(self._waiting[owner], added)

    def price(self, key: PositionKey, price: Decimal | None) -> Decimal | None:
        """Return the higher of an order's price and the one that is known; None without either."""
        return max(price or ZERO, self.known_price(key) or ZERO) or None

    def known_price(self, key: PositionKey) -> Decimal | None:
        """Return the price that the service itself knows; None without one.

        A mark of its own may be old: others have traded the symbol since.
        """
        return max(self._position(key).mark, self._known.get((key.account, key.symbol), ZERO)) or None

    def reached(self, key: PositionKey, quantity: Decimal) -> Decimal | None:
        """Return the position if the order and all that trade its way are filled; None for a reduction."""
        held, opened = self._position(key).quantity, self._open.get(key, _Open())
        after = exact_sum((held, quantity, opened.bought if quantity > 0 else opened.sold))
        return None if abs(after) < abs(held) and after * held >= 0 else after

    def exposure(self, strategy_id: str, account: str) -> AccountTotals:
        """Return the totals of a strategy, or of the world, if all open orders are filled."""
        owner = ExposureKey(strategy_id, account)
        found = self._exposures.get(owner, AccountTotals())
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


def _sum(totals: Iterable[AccountTotals]) -> AccountTotals:
    """Add up the totals of worlds; the sum of their peaks is at least the peak of their sum."""
    found = list(totals)
    return AccountTotals(
        gross=exact_sum(item.gross for item in found),
        profit=exact_sum(item.profit for item in found),
        peak=exact_sum(item.peak for item in found),
    )


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


def _of_total(limits: TotalLimits, found: AccountTotals, price: Decimal | None) -> Refusal | None:
    most = limits.max_gross_notional
    if most is not None and (price is None or found.gross > most):
        return Refusal.GROSS_LIMIT
    if limits.max_loss is not None and found.profit < -limits.max_loss:
        return Refusal.LOSS_LIMIT
    fallen = EXACT.subtract(found.peak, found.profit)
    if limits.max_drawdown is not None and fallen > limits.max_drawdown:
        return Refusal.DRAWDOWN_LIMIT
    return None
