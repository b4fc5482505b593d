"""Binance's spot API over an exchange in a process of its own, as unkind as real ones.

`python -m tests.chaos.spot_server PORT SEED FILE [kind]` serves `tests.support.spot_exchange` on loopback
until it is killed; started again, it goes on with what FILE has.

Requests are signed, and refused when they come later than their `recvWindow`. More than `LIMIT` in a second
are answered with 429. Some are cut: an order that was cut arrives at once, later or never. `/stand-in/all`
tells all, `/stand-in/kind` ends the unkindness and lets the price meet all that rests, and after
`/stand-in/late` each trade is listed late.
"""

import hashlib
import hmac
import json
import random
import sys
import threading
import time
from collections import deque
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.support.spot_exchange import MONEY, STEPS, RefusedError, SpotExchange, SpotOrder, Trade, now_ms

KEY = "planted-key-3f1d8a7c55e0"
SECRET = "planted-secret-9b2c41d07ae6"

IN_FLIGHT_S = 1.0
"""Seconds that an order may be on its way after its call was cut."""

LIMIT = 250
KIND_LIMIT = 500
"""The weight of requests in a second, as Binance weighs them."""

_WEIGHTS = {"GET order": 4, "GET openOrders": 6, "GET allOrders": 20, "GET myTrades": 20, "GET account": 20}

# How often an answer comes late, and by how many seconds at most.
LATE = 0.15
LATE_S = 0.25


class CutError(Exception):
    """The connection is closed without an answer."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body in one packet
    exchange: SpotExchange
    unkind = True
    lock = threading.Lock()
    recent: deque[tuple[float, int]] = deque()
    rng = random.Random(0)
    limit = LIMIT

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        query = address.query or body
        try:
            if address.path.startswith("/stand-in/"):
                answer = self._control(address.path.rsplit("/", 1)[1])
            else:
                path = address.path.removeprefix("/api/v3/")
                self._count(_WEIGHTS.get(f"{self.command} {path}", 1))
                if "signature=" in query:
                    self._check(query)
                answer = self._answer(path, dict(parse_qsl(query)))
        except CutError:
            self.close_connection = True
            return
        except RefusedError as refusal:
            self._send(refusal.status, {"code": refusal.code, "msg": refusal.text})
            return
        if self.unkind and self.rng.random() < LATE:
            time.sleep(self.rng.random() * LATE_S)
        self._send(200, answer)

    def _control(self, what: str) -> Any:
        """What a test asks for. (Any: JSON.)"""
        with self.lock:
            if what == "late":
                self.exchange.late_ms = 1500
                return {}
            if what == "kind":
                type(self).unkind, self.exchange.ending = False, True
                return {}
            return {
                "orders": [asdict(order) for order in self.exchange.orders.values()],
                "trades": [asdict(trade) for trade in self.exchange.trades],
                "balances": {
                    asset: sum(self.exchange.balance(asset)) - begun for asset, begun in MONEY.items()
                },
                "limited": self.exchange.limited,
            }

    def _count(self, weight: int) -> None:
        """Count a request. Raises RefusedError where there were too many."""
        with self.lock:
            clock = time.monotonic()
            while self.recent and clock - self.recent[0][0] > 1:
                self.recent.popleft()
            if sum(each for _, each in self.recent) + weight > self.limit:
                self.exchange.note_limited()
                raise RefusedError(-1003, "Too much request weight used; please use WebSocket.", 429)
            self.recent.append((clock, weight))

    def _check(self, query: str) -> None:
        """Check the signature of a request. Raises RefusedError."""
        if self.headers.get("X-MBX-APIKEY") != KEY:
            key = self.headers.get("X-MBX-APIKEY")
            raise RefusedError(-2015, f"Invalid API-key {key}, IP, or permissions for action.", 401)
        signed_part, _, signature = query.rpartition("&signature=")
        if hmac.new(SECRET.encode(), signed_part.encode(), hashlib.sha256).hexdigest() != signature:
            raise RefusedError(-1022, "Signature for this request is not valid.")
        _require_in_time(dict(parse_qsl(query)))

    def _answer(self, path: str, given: dict[str, str]) -> Any:
        if self.command == "POST" and path == "order":
            return self._post_order(given)
        if self.unkind and self.rng.random() < 0.03:
            raise CutError
        exchange = self.exchange
        with self.lock:
            if path == "order":
                act = exchange.cancel if self.command == "DELETE" else exchange.find
                return order_json(act(given))
            if path in ("openOrders", "allOrders"):
                exchange.step()
                start = int(given.get("startTime", 0))
                return [
                    order_json(order)
                    for order in exchange.orders.values()
                    if order.symbol == given["symbol"]
                    and (order.is_open if path == "openOrders" else order.at >= start)
                ][: int(given.get("limit", 500))]
            if path == "myTrades":
                start, limit = int(given.get("startTime", 0)), int(given.get("limit", 500))
                found = exchange.listed(given["symbol"], start, given.get("orderId", ""))
                return [trade_json(trade) for trade in found][:limit]
            if path == "account":
                return account_json(exchange)
            if path == "depth":
                return exchange.depth(given["symbol"])
        if path == "exchangeInfo":
            return {"symbols": [market_json(name) for name in STEPS]}
        raise RefusedError(-1000, f"no {path}", 404)

    def _post_order(self, given: dict[str, str]) -> Any:
        luck = self.rng.random() if self.unkind else 1.0
        if luck < 0.08:
            raise CutError  # it never arrives
        if luck < 0.18:  # it arrives later
            timer = threading.Timer(self.rng.random() * IN_FLIGHT_S, self._arrive, (given,))
            timer.daemon = True
            timer.start()
            raise CutError
        if luck < 0.22:
            raise RefusedError(-1013, "Filter failure: PERCENT_PRICE_BY_SIDE")
        with self.lock:
            order = self.exchange.place(given)
        if luck < 0.32:
            raise CutError
        return order_json(order)

    def _arrive(self, given: dict[str, str]) -> None:
        with self.lock:
            try:
                _require_in_time(given)
                self.exchange.place(given)
            except RefusedError:
                return  # nobody hears of it

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body, default=str).encode()
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            self.close_connection = True  # the router was killed


def _require_in_time(given: dict[str, str]) -> None:
    if now_ms() > int(given["timestamp"]) + int(given.get("recvWindow", 5000)):
        raise RefusedError(-1021, "Timestamp for this request is outside of the recvWindow.")


def order_json(order: SpotOrder) -> dict[str, Any]:
    return {
        "symbol": order.symbol,
        "orderId": order.order_id,
        "orderListId": -1,
        "clientOrderId": order.client_id,
        "price": order.price,
        "origQty": order.quantity,
        "executedQty": order.filled,
        "cummulativeQuoteQty": order.paid,
        "status": order.status,
        "timeInForce": order.tif,
        "type": order.type,
        "side": order.side,
        "time": order.at,
        "updateTime": order.at,
        "transactTime": order.at,
        "isWorking": True,
    }


def trade_json(trade: Trade) -> dict[str, Any]:
    return {
        "symbol": trade.symbol,
        "id": trade.trade_id,
        "orderId": trade.order_id,
        "orderListId": -1,
        "price": trade.price,
        "qty": trade.quantity,
        "quoteQty": trade.quantity * trade.price,
        "commission": trade.fee,
        "commissionAsset": trade.fee_asset,
        "time": trade.at,
        "isBuyer": trade.side == "BUY",
        "isMaker": False,
        "isBestMatch": True,
    }


def account_json(exchange: SpotExchange) -> dict[str, Any]:
    found = {asset: exchange.balance(asset) for asset in MONEY}
    return {
        "accountType": "SPOT",
        "updateTime": now_ms(),
        "balances": [
            {"asset": asset, "free": free, "locked": locked} for asset, (free, locked) in found.items()
        ],
    }


def market_json(symbol: str) -> dict[str, Any]:
    step, tick = STEPS[symbol]
    return {
        "symbol": symbol,
        "status": "TRADING",
        "baseAsset": symbol.removesuffix("USDT"),
        "quoteAsset": "USDT",
        "baseAssetPrecision": 8,
        "quotePrecision": 8,
        "orderTypes": ["LIMIT", "MARKET"],
        "permissions": ["SPOT"],
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000", "tickSize": tick},
            {"filterType": "LOT_SIZE", "minQty": step, "maxQty": "9000", "stepSize": step},
            {"filterType": "NOTIONAL", "minNotional": "5", "applyMinToMarket": True},
        ],
    }


if __name__ == "__main__":
    Handler.rng = random.Random(int(sys.argv[2]))
    Handler.unkind = "kind" not in sys.argv[4:]
    Handler.limit = LIMIT if Handler.unkind else KIND_LIMIT
    Handler.exchange = SpotExchange(Path(sys.argv[3]), int(sys.argv[2]), Handler.unkind)
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
