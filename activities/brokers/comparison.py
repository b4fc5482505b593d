"""A broker's books against ours, as pure functions: what differs, since when, and which worlds that concerns.

A figure that differs in one look says little: a fill may be on its way. It counts from the look that first
saw the same difference; a position that our ledger changed during the look is not judged in it.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from qmtl_sdk.contracts.amounts import EXACT, ZERO, exact_sum, plain
from qmtl_sdk.contracts.reconciliation import ComparedPosition, Reconciliation, StrayOrder

# A look that is older says nothing about what a difference has lasted for.
_RECENT = timedelta(minutes=10)

# Differences that the reason of a halt names.
_NAMED = 2


@dataclass(frozen=True)
class Looked:
    """What one look saw. `worlds`: what each holds, by symbol; `traded`: symbols that moved meanwhile.

    `trading`: worlds that trade in the account's domain. They are concerned, with all that hold something at
    the account, by what no world is known to hold.
    """

    at: datetime
    worlds: Mapping[str, Mapping[str, Decimal]]
    traded: Collection[str] = ()
    trading: Collection[str] = ()

    @property
    def all_worlds(self) -> tuple[str, ...]:
        """The worlds that something is about which belongs to none."""
        holding = {world for held in self.worlds.values() for world in held}
        return tuple(sorted(holding | set(self.trading)))


def compare_positions(
    looked: Looked, broker: Mapping[str, Decimal], before: Reconciliation | None
) -> list[ComparedPosition]:
    """Compare positions; those that differ come first, then by symbol."""
    is_recent = before is not None and looked.at - before.at < _RECENT
    earlier = {item.symbol: item for item in before.positions} if before and is_recent else {}
    found = []
    for symbol in sorted(looked.worlds.keys() | broker.keys()):
        held = looked.worlds.get(symbol, {})
        ours, theirs = exact_sum(held.values()), broker.get(symbol, ZERO)
        if not ours and not theirs:
            continue
        difference = plain(EXACT.subtract(theirs, ours))
        last = earlier.get(symbol)
        since: datetime | None = None
        if difference and last is not None and last.difference == difference and last.since is not None:
            since = last.since
        elif difference and symbol not in looked.traded:
            since = looked.at
        found.append(
            ComparedPosition(
                symbol=symbol,
                ledger=plain(ours),
                broker=plain(theirs),
                difference=difference,
                since=since,
                traded=symbol in looked.traded,
                worlds=tuple(sorted(held)) or looked.all_worlds,
            )
        )
    return sorted(found, key=lambda item: (not item.difference, item.symbol))


def stray_orders(
    looked: Looked, worlds: Mapping[str, str], before: Reconciliation | None
) -> tuple[StrayOrder, ...]:
    """Return the orders, by id with the world that once accepted each, with the look that first saw them."""
    since = {item.order_id: item.since for item in before.orders} if before else {}
    return tuple(
        StrayOrder(
            order_id=order_id,
            since=since.get(order_id, looked.at),
            worlds=(world,) if world else looked.all_worlds,
        )
        for order_id, world in sorted(worlds.items())
    )


def reasons_to_halt(result: Reconciliation, patience: timedelta) -> dict[str, str]:
    """Return why each world is halted, with the figures: what differs for longer than `patience`."""
    texts: dict[str, list[str]] = {}
    for position in result.positions:
        if position.traded or position.since is None:
            continue
        if result.at - position.since > patience:
            text = f"{position.broker} {position.symbol} at the broker, {position.ledger} in the ledger"
            for world in position.worlds:
                texts.setdefault(world, []).append(text)
    for order in result.orders:
        if result.at - order.since > patience:
            for world in order.worlds:
                texts.setdefault(world, []).append(f"order {order.order_id} is open at the broker, not here")
    return {world: _reason(result.account, found) for world, found in sorted(texts.items())}


def _reason(account: str, found: list[str]) -> str:
    more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"reconciliation of {account}: {'; '.join(found[:_NAMED])}{more}"
