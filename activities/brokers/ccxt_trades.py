"""Trades of an account on an exchange: of an order, and since a time, each as a fill.

Exchanges list trades by pages, late, and some of them twice. A trade names its order as the exchange does;
the client order ids of these are read with the orders, and remembered.
"""

from collections import OrderedDict
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import structlog

from activities.brokers.ccxt_venue import CcxtVenue, UnknownOrderError
from qmtl_sdk.contracts.amounts import ZERO, exact_sum
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import Fill

# Trades, or orders, that one request asks for: what most exchanges have on a page.
_PAGE = 500

# Pages of one look at most; a look that needs more begins anew with what this one has learnt.
_PAGES = 20

# Orders that one look reads one by one.
_ONE_BY_ONE = 20

# Orders whose names are remembered.
_NAMES = 100_000

_log = structlog.get_logger()


class TradeReader:
    """Reads trades. (Any: ccxt's structures, as JSON.)"""

    def __init__(self, venue: CcxtVenue) -> None:
        self._venue = venue
        # Client order ids by the exchange's ids of orders, per market; empty where there is none.
        self._names: OrderedDict[tuple[str, str], str] = OrderedDict()

    def of_order(self, order: Any, market: str) -> list[Any]:
        """List the trades of an order, each once."""
        self._note(market, order["id"], order["clientOrderId"])
        if self._venue.has("fetchOrderTrades"):
            found = self._venue.ask("fetch_order_trades", order["id"], market)
        else:
            found = self._pages("fetch_my_trades", market, int(order["timestamp"]))
        return list({each["id"]: each for each in found if each["order"] == order["id"]}.values())

    def since(self, market: str, since: datetime) -> tuple[list[Any], dict[str, str]]:
        """List the trades of a market since a time, and the client order ids of their orders."""
        start = int(since.timestamp() * 1000)
        trades = self._pages("fetch_my_trades", market, start)
        unknown = {each["order"] for each in trades if (market, each["order"]) not in self._names}
        if len(unknown) > _ONE_BY_ONE and self._venue.has("fetchOrders"):
            for order in self._pages("fetch_orders", market, start):
                self._note(market, order["id"], order["clientOrderId"])
            unknown = {order for order in unknown if (market, order) not in self._names}
        for count, order_id in enumerate(sorted(unknown)):
            if count == _ONE_BY_ONE:  # what was read is remembered: the next look goes on
                raise QmtlError("E_UNAVAILABLE", f"there are more orders with trades of {market} to be read")
            try:
                self._note(
                    market, order_id, self._venue.ask("fetch_order", order_id, market)["clientOrderId"]
                )
            except UnknownOrderError:
                self._note(market, order_id, None)
        return trades, {each["order"]: self._names[market, each["order"]] for each in trades}

    def _pages(self, method: str, market: str, start: int) -> list[Any]:
        """Read pages from a time (ms) on until one is not full; each item once."""
        found = dict[str, Any]()
        for _ in range(_PAGES):
            page = self._venue.ask(method, market, start, _PAGE)
            new = {each["id"]: each for each in page if each["id"] not in found}
            found |= new
            if len(page) < _PAGE:
                return list(found.values())
            if not new:
                raise QmtlError("E_UNAVAILABLE", f"{market} has more at one time than a page holds")
            start = max(int(each["timestamp"]) for each in page)
        raise QmtlError("E_UNAVAILABLE", f"{market} has more trades than one look reads")

    def _note(self, market: str, order_id: str, name: str | None) -> None:
        self._names[market, order_id] = name or ""
        while len(self._names) > _NAMES:
            self._names.popitem(last=False)


def fill_of(trade: Any, account: str, market: str) -> Fill:
    """Return a trade as a fill. A fee in a third currency is none of the account's: it is logged."""
    base, _, quote = market.partition("/")
    fees = trade.get("fees") or ([trade["fee"]] if trade.get("fee") else [])
    costs = [(each.get("currency"), Decimal(str(each.get("cost") or 0))) for each in fees]
    other = {currency for currency, cost in costs if cost and currency not in (base, quote)}
    if other:
        _log.warning(
            "a fee in another currency is not booked", market=market, currencies=sorted(map(str, other))
        )
    return Fill(
        fill_id=str(trade["id"]),
        quantity=Decimal(str(trade["amount"])),
        price=Decimal(str(trade["price"])),
        fee=exact_sum([ZERO, *(cost for currency, cost in costs if currency == quote)]),
        fee_units=exact_sum([ZERO, *(cost for currency, cost in costs if currency == base)]),
        account=account,
        at=datetime.fromtimestamp(int(trade["timestamp"]) / 1000, UTC),
    )
