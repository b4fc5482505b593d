"""Crossings: opposite changes of a world's strategies net out at the marks of the plan, without an order.

A crossing is an entry of the ledger for each side; they add up to zero at the account. Whoever gives or
takes must be allowed to trade as much: otherwise all that wanted to cross the symbol order instead, and the
fence decides about each order.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from activities.allocation.orders import part_order_id
from activities.fence.deciding import Grounds, NewRequests
from activities.fence.fills import write_lines
from activities.fence.log_line import BOOKING, LogLine
from activities.fence.position_limits import AccountLimits
from activities.fence.statements import statements_of
from activities.fence.targets import WorldSizings
from activities.order_settings import OrdersSettings
from activities.rebalancing.orders import order_of
from activities.rebalancing.trades import PlannedTrade
from activities.storage.database import Database
from activities.storage.tables import FenceRow
from activities.storage.transactions import Transaction, utc_text
from qmtl_sdk.contracts.amounts import EXACT, ZERO, plain
from qmtl_sdk.contracts.ledger import Entry, EntryKind

_Symbol = tuple[str, str, str]


class Crossings:
    """Books crossings."""

    def __init__(self, database: Database, settings: OrdersSettings) -> None:
        self._statements = statements_of(database)
        self._domains = {account: domain for domain, account in settings.accounts.items()}
        self._accounts = AccountLimits.of(settings)
        self._sizings = WorldSizings()

    def book(
        self,
        tx: Transaction,
        fences: Mapping[str, FenceRow],
        run_id: str,
        run_key: str,
        trades: Sequence[PlannedTrade],
    ) -> list[PlannedTrade]:
        """Book the crossings that are allowed. Returns the trades as they are carried out, in their order.

        The transaction holds the fences of the worlds. Ids of orders follow from `run_key`.
        """
        of_symbol = defaultdict[_Symbol, list[PlannedTrade]](list)
        for trade in trades:
            if trade.crossed:
                of_symbol[trade.world_id, trade.account, trade.symbol].append(trade)
        refused = self._refused(tx, of_symbol)
        for world_id, fence in fences.items():
            mine = [
                item
                for key, found in of_symbol.items()
                if key[0] == world_id and key not in refused
                for item in found
            ]
            _write(tx, fence, run_id, mine)
        return [
            _ordered_instead(trade, run_key)
            if (trade.world_id, trade.account, trade.symbol) in refused and trade.crossed
            else trade
            for trade in trades
        ]

    def _refused(self, tx: Transaction, of_symbol: Mapping[_Symbol, list[PlannedTrade]]) -> set[_Symbol]:
        """Return the symbols in which somebody may not trade what they would cross."""
        refused = {key for key in of_symbol if key[1] not in self._domains}
        wanted = [
            (key, replace(trade, quantity=trade.crossed, order_id=_trial_id(trade)))
            for key, found in of_symbol.items()
            if key not in refused
            for trade in found
        ]
        if not wanted:
            return refused
        orders = [order_of(trade, self._domains[trade.account], 0) for _, trade in wanted]
        snapshot = self._statements.read(tx.connection, orders, set(), wait=True)
        sizings = self._sizings.of(tx.connection, {key[0] for key, _ in wanted})
        orders = [
            order.model_copy(update={"epoch": snapshot.fences[order.world_id].epoch}) for order in orders
        ]
        decided = NewRequests(tx, orders, Grounds(snapshot, True, self._accounts, self._sizings))
        for (key, trade), order in zip(wanted, orders, strict=True):
            lot = sizings[key[0]].instrument(trade.account, trade.symbol).lot
            if decided.lines[order.order_id].line.reason or EXACT.remainder(trade.quantity, lot):
                refused.add(key)
        return refused


def _trial_id(trade: PlannedTrade) -> str:
    """Return an id for the order that a crossing is checked as. It is not sent."""
    return part_order_id("crossing", trade.place, trade.crossed)


def _ordered_instead(trade: PlannedTrade, run_key: str) -> PlannedTrade:
    quantity = plain(EXACT.add(trade.quantity, trade.crossed))
    return replace(
        trade,
        quantity=quantity,
        crossed=ZERO,
        reduce_only=False,
        order_id=trade.order_id or part_order_id(run_key, trade.place, quantity),
    )


def _write(tx: Transaction, fence: FenceRow, run_id: str, trades: Sequence[PlannedTrade]) -> None:
    at = datetime.now(UTC)
    lines = []
    for number, trade in enumerate(trades):
        entry = Entry(
            kind=EntryKind.ADJUSTMENT,
            ref=f"rebalancing:{run_id}:{number}",
            strategy_id=trade.strategy_id,
            account=trade.account,
            symbol=trade.symbol,
            quantity=Decimal(trade.crossed),
            price=trade.mark,
            reason="crossed with other strategies of the world",
        )
        body = entry.model_dump_json(exclude_defaults=True)
        time = utc_text(at + timedelta(microseconds=number))
        lines.append(
            LogLine(
                time, fence.world_id, BOOKING, entry.ref, fence.epoch, trade.strategy_id, entry.reason, body
            )
        )
    write_lines(tx, fence.world_id, lines)
