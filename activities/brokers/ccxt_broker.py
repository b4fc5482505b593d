"""The broker `ccxt`: orders on the spot markets of an exchange, with the account's books.

1. An order is placed under its client order id (`client_ids.py`), so a later process finds it, whatever
   became of this one. One that the venue cannot take as it is, is rejected: no quantity is rounded.
2. What a venue refuses is looked up before it is reported as rejected: venues refuse an id that they have,
   and then the order has arrived.
3. What became of an order is asked of the venue, its fills as trades. An order ends here when its trades make
   up what the venue says was filled: they may be listed late, and twice.
4. A fee in units of the symbol reduces the position, a fee in a third currency is no part of these books.

One order is placed in a call, so that a call needs two requests at most.
"""

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from activities.brokers.broker import AcceptedOrder, Broker, BrokerSettings, Capabilities
from activities.brokers.ccxt_options import CcxtOptions, read_credentials, read_options
from activities.brokers.ccxt_trades import TradeReader, fill_of
from activities.brokers.ccxt_venue import CcxtVenue, RefusedError, UnknownOrderError
from activities.brokers.client_ids import client_id, order_id_of
from qmtl_sdk.contracts.amounts import exact_sum
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import MAX_FILLS, Fill, ReportedFill
from qmtl_sdk.contracts.orders import MAX_REASON, Order, OrderReport
from qmtl_sdk.contracts.reconciliation import AccountState

# Seconds after the beginning of a call in which a second request may begin.
_SECOND_REQUEST_S = 1.9

# Seconds that the requests of one look-up may wait for the venue's limit of requests.
_LOOK_UP_S = 1.5

# What a state of ccxt is here; any other is one in which the order is open.
_ENDS = {"closed": "filled", "canceled": "cancelled", "expired": "expired", "rejected": "rejected"}


class CcxtBroker(Broker):
    """Trades on an exchange through ccxt."""

    batch = 1

    def __init__(self, name: str, options: CcxtOptions, venue: CcxtVenue) -> None:
        self.name = name
        self.time_in_flight_s = options.time_in_flight_s
        tifs = ("GTC", "IOC", "FOK") if options.order_type == "limit" else ("GTC", "IOC")
        self.capabilities = Capabilities(
            time_in_force=frozenset(tifs), open_orders=True, positions=True, fills_since=True, account=True
        )
        self._order_type = options.order_type
        self._markets = options.markets
        self._currency = options.currency
        self._venue = venue
        self._trades = TradeReader(venue)
        self.lookup_batch = self._look_ups()

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Send orders. One of which the venue says that it is open is looked up for its fills."""
        return [self._place(placed.order) for placed in orders]

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        """Look up orders by their client order ids."""
        try:
            return self._find(orders)
        finally:
            self.lookup_batch = self._look_ups()  # the pauses may have become longer

    def _look_ups(self) -> int:
        """Up to two requests for each order, and one for each symbol, have to end within a call."""
        return max(int(_LOOK_UP_S / max(self._venue.rate_limit_s, 0.001) / 3), 1)

    def _find(self, orders: Sequence[AcceptedOrder]) -> list[OrderReport]:
        reports = list[OrderReport]()
        symbols = [placed.order.symbol for placed in orders]
        opened = dict[str, Any]()
        for symbol in set(symbols):
            if symbols.count(symbol) > 1:  # one request tells of all that rest
                opened |= {each["clientOrderId"]: each for each in self._opened(self._market(symbol))}
        for order, _ in orders:
            name = client_id(order.order_id)
            if name is None:
                continue  # it was never placed
            found = opened.get(name) or self._lookup(name, self._market(order.symbol))
            if found is not None:
                reports += self._reports(order, found)
        return reports

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        """Ask the venue to cancel orders."""
        for order, _ in orders:
            name = client_id(order.order_id)
            if name is None:
                continue
            try:
                self._venue.ask("cancel_order", "", self._market(order.symbol), clientOrderId=name)
            except (UnknownOrderError, RefusedError):
                continue  # it has ended, or has not arrived

    def open_orders(self, now: datetime) -> list[str]:
        """List open orders; those of others by the names that the venue has for them."""
        found = [each for market in self._markets.values() for each in self._opened(market)]
        return [order_id_of(each["clientOrderId"] or "") or f"{self.name}:{each['id']}" for each in found]

    def positions(self, now: datetime) -> dict[str, Decimal]:
        """Return the balances of what the symbols are units of."""
        total = self._venue.ask("fetch_balance")["total"]
        return {ours: _amount(total.get(_base(market))) for ours, market in self._markets.items()}

    def fills_since(self, since: datetime, now: datetime) -> list[ReportedFill]:
        """List the fills of orders that were placed here."""
        found = list[ReportedFill]()
        for market in self._markets.values():
            trades, names = self._trades.since(market, since)
            for trade in trades:
                order_id = order_id_of(names.get(trade["order"]) or "")
                if order_id is not None:
                    found.append(ReportedFill(order_id=order_id, fill=fill_of(trade, self.name, market)))
        return found

    def account(self, now: datetime) -> AccountState:
        """Return the balance of the currency in which the symbols are quoted."""
        total = self._venue.ask("fetch_balance")["total"]
        return AccountState(currency=self._currency, cash=_amount(total.get(self._currency)))

    def _place(self, order: Order) -> OrderReport:
        began, name = time.monotonic(), client_id(order.order_id)
        if name is None:
            return _rejection(order, "its id has no short form; ids end in 32 hexadecimal digits")
        if order.symbol not in self._markets:
            return _rejection(order, f"the broker {self.name} does not trade {order.symbol}")
        market = self._markets[order.symbol]
        try:
            amount, price = self._amount_and_price(order, market)
        except RefusedError as refusal:
            return _rejection(order, str(refusal))
        _require_time(began)  # the markets may have been read first
        params: dict[str, Any] = {"clientOrderId": name}
        if price is not None:
            params["timeInForce"] = order.time_in_force
        try:
            self._venue.ask("create_order", market, self._order_type, order.side, amount, price, **params)
        except RefusedError as refusal:
            _require_time(began)
            if self._lookup(name, market) is None:
                return _rejection(order, str(refusal))
        return OrderReport(order_id=order.order_id, state="sent")

    def _amount_and_price(self, order: Order, market: str) -> tuple[str, str | None]:
        """Return both as the venue writes them. Raises RefusedError where it cannot take the order."""
        amount = self._venue.amount(market, order.quantity)
        if self._order_type == "market":
            return amount, None
        if order.reference_price is None:
            raise RefusedError("it has no reference price, at which the broker places a limit order")
        return amount, self._venue.limit_price(market, order.reference_price, order.side)

    def _lookup(self, name: str, market: str) -> Any:
        """Return an order by its client order id; None where the venue does not know it. (Any: JSON.)"""
        try:
            return self._venue.ask("fetch_order", "", market, clientOrderId=name)
        except UnknownOrderError:
            return None

    def _opened(self, market: str) -> Any:
        return self._venue.ask("fetch_open_orders", market)

    def _market(self, symbol: str) -> str:
        """Return ccxt's name of a symbol. An order that was placed in one that was taken out stays open."""
        if symbol not in self._markets:
            raise QmtlError("E_EXTENSION", f"{symbol} is not among the symbols of the broker {self.name}")
        return self._markets[symbol]

    def _reports(self, order: Order, found: Any) -> Iterable[OrderReport]:
        """Build reports of what the venue knows of an order, with as many fills as one holds in each."""
        market, filled = self._markets[order.symbol], _amount(found["filled"])
        trades = self._trades.of_order(found, market) if filled or found["filled"] is None else []
        fills = [fill_of(trade, self.name, market) for trade in trades]
        parts = [fills[start : start + MAX_FILLS] for start in range(0, len(fills), MAX_FILLS)] or [[]]
        state, reason = _state(order, found["status"], filled, fills)
        return [
            OrderReport.model_validate(
                {"order_id": order.order_id, "state": state, "fills": part, "reason": reason}
            )
            for part in parts
        ]


def _state(order: Order, status: str, filled: Decimal, fills: Sequence[Fill]) -> tuple[str, str]:
    """Return the state of an order, with a reason where it has ended otherwise than it was meant to."""
    listed, end = exact_sum(fill.quantity for fill in fills), _ENDS.get(status)
    if end is None or listed < filled:  # trades are still to be listed
        return ("partially_filled" if listed else "sent"), ""
    if listed >= order.quantity:
        return "filled", ""
    if end == "filled":
        return "cancelled", f"the venue ended it with {listed:f} filled"
    return end, f"the venue says {status}"


def _require_time(began: float) -> None:
    """Raise where another request might not end within the limit of the call: the order is looked up."""
    if time.monotonic() - began > _SECOND_REQUEST_S:
        raise QmtlError("E_UNAVAILABLE", "the venue answers too slowly to be sent another request")


def _rejection(order: Order, reason: str) -> OrderReport:
    return OrderReport(order_id=order.order_id, state="rejected", reason=reason[:MAX_REASON])


def _amount(value: str | None) -> Decimal:
    return Decimal(str(value)) if value is not None else Decimal(0)


def _base(market: str) -> str:
    return market.partition("/")[0]


def open_ccxt(settings: BrokerSettings) -> CcxtBroker:
    """Open the broker of a domain. Raises QmtlError: E_CONFIG, E_EXTENSION where ccxt is not installed."""
    options = read_options(settings.options)
    if settings.domain is not Domain.LIVE and not (options.sandbox or options.url):
        raise QmtlError(
            "E_CONFIG",
            f"the broker ccxt would trade with money for {settings.domain.value}",
            "set orders.dryrun_broker to paper, or sandbox: true in orders.broker_options",
        )
    return CcxtBroker(settings.account, options, CcxtVenue(options, read_credentials(options)))
