"""A spot exchange for tests: accounts, an order book and trades, kept in a file that outlives its process.

It is built like Binance's: ids of orders are numbers, a client order id is refused only while an order of
that id is open, buyers pay fees in what they buy and sellers in what they get, and trades name orders by
number.

The other side of the book is the exchange's own: a price that walks, with a few levels on each side.
"""

import json
import random
import time
from dataclasses import asdict, dataclass, field
from decimal import ROUND_DOWN, Decimal
from pathlib import Path
from typing import Any

D = Decimal
NOTHING = D(0)
PLACE = D("0.00000001")
FEE = D("0.001")
STEPS = {"BTCUSDT": (D("0.0001"), D("0.01")), "ETHUSDT": (D("0.001"), D("0.01"))}
"""The steps of quantity and price of each market."""
START = {"BTCUSDT": D(30000), "ETHUSDT": D(2000)}
MONEY = {"USDT": D(50_000_000), "BTC": D(0), "ETH": D(0)}
"""What the account begins with."""

_NUMBERS = {"quantity", "price", "filled", "paid", "fee"}

OPEN = ("NEW", "PARTIALLY_FILLED")

# Seconds between two changes of the price.
_STEP_S = 0.05


class RefusedError(Exception):
    """An order, or a request, that the exchange does not take: `code` and `text` are its answer."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.status = status


@dataclass
class SpotOrder:
    order_id: int
    client_id: str
    symbol: str
    side: str
    type: str
    tif: str
    quantity: Decimal
    price: Decimal
    at: int
    status: str = "NEW"
    filled: Decimal = NOTHING
    paid: Decimal = NOTHING

    @property
    def is_open(self) -> bool:
        return self.status in OPEN

    @property
    def left(self) -> Decimal:
        return self.quantity - self.filled


@dataclass
class Trade:
    trade_id: int
    order_id: int
    symbol: str
    side: str
    quantity: Decimal
    price: Decimal
    fee: Decimal
    fee_asset: str
    at: int
    shown_at: int


@dataclass
class SpotExchange:
    """`delays`: some trades are listed up to a second late, or twice; `late_ms`: how late all others are."""

    file: Path
    seed: int
    delays: bool = True
    late_ms: int = 0
    orders: dict[int, SpotOrder] = field(default_factory=dict)
    trades: list[Trade] = field(default_factory=list)
    limited: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self._mid = dict(START)
        self._stepped_at = time.monotonic()
        self.ending = False
        for kind, body in _read(self.file):
            self._replay(kind, body)

    def place(self, given: dict[str, str]) -> SpotOrder:
        """Take an order. Raises RefusedError."""
        self.step()
        symbol, quantity = given["symbol"], D(given["quantity"])
        if symbol not in STEPS:
            raise RefusedError(-1121, "Invalid symbol.")
        step, tick = STEPS[symbol]
        price = D(given.get("price", "0"))
        if quantity <= 0 or quantity % step:
            raise RefusedError(-1013, "Filter failure: LOT_SIZE")
        if price % tick or (given["type"] == "LIMIT" and price <= 0):
            raise RefusedError(-1013, "Filter failure: PRICE_FILTER")
        if any(order.is_open for order in self.named(given["newClientOrderId"])):
            raise RefusedError(-2010, "Duplicate order sent.")
        worth = price or self._mid[symbol] * D("1.01")
        asset, needed = (
            ("USDT", quantity * worth) if given["side"] == "BUY" else (symbol.removesuffix("USDT"), quantity)
        )
        if self.balance(asset)[0] < needed:
            raise RefusedError(-2010, "Account has insufficient balance for requested action.")
        order = SpotOrder(
            order_id=1000 + len(self.orders),
            client_id=given["newClientOrderId"],
            symbol=symbol,
            side=given["side"],
            type=given["type"],
            tif=given.get("timeInForce", "GTC"),
            quantity=quantity,
            price=price,
            at=now_ms(),
        )
        self.orders[order.order_id] = order
        _write(self.file, "order", asdict(order))
        self._take(order)
        return order

    def named(self, client_id: str) -> list[SpotOrder]:
        return [order for order in self.orders.values() if order.client_id == client_id]

    def find(self, given: dict[str, str], code: int = -2013) -> SpotOrder:
        """The newest order of a client order id, or the one of a number. Raises RefusedError."""
        self.step()
        if "orderId" in given:
            found = [self.orders[int(given["orderId"])]] if int(given["orderId"]) in self.orders else []
        else:
            found = self.named(given["origClientOrderId"])
        if not found or found[-1].symbol != given["symbol"]:
            raise RefusedError(code, "Order does not exist." if code == -2013 else "Unknown order sent.")
        return found[-1]

    def cancel(self, given: dict[str, str]) -> SpotOrder:
        order = self.find(given, -2011)
        if not order.is_open:
            raise RefusedError(-2011, "Unknown order sent.")
        self._end(order, "CANCELED")
        return order

    def listed(self, symbol: str, start: int, order_id: str = "") -> list[Trade]:
        """Trades from a time on, as far as they are listed by now; a tenth of them twice."""
        self.step()
        found = [
            trade
            for trade in self.trades
            if trade.symbol == symbol and trade.at >= start and trade.shown_at <= now_ms()
        ]
        if order_id:
            found = [trade for trade in found if trade.order_id == int(order_id)]
        return [trade for trade in found for _ in range(1 + (self.delays and self.rng.random() < 0.1))]

    def balance(self, asset: str) -> tuple[Decimal, Decimal]:
        """What is free, and what open orders lock."""
        total, locked = MONEY[asset], D(0)
        for trade in self.trades:
            sign = 1 if trade.side == "BUY" else -1
            if trade.symbol == f"{asset}USDT":
                total += sign * trade.quantity
            elif asset == "USDT":
                total -= sign * trade.quantity * trade.price
            if trade.fee_asset == asset:
                total -= trade.fee
        for order in self.orders.values():
            if order.is_open and order.side == "BUY" and asset == "USDT":
                locked += order.left * order.price
            elif order.is_open and order.side == "SELL" and order.symbol == f"{asset}USDT":
                locked += order.left
        return total - locked, locked

    def depth(self, symbol: str) -> dict[str, list[tuple[Decimal, Decimal]]]:
        """Five levels on each side, best first."""
        tick, mid = STEPS[symbol][1], self._mid[symbol]
        sizes = random.Random(str(mid))
        levels = range(1, 6)
        return {
            side: [
                (_to_step(mid * (1 + sign * level * D("0.0002")), tick), D(sizes.randrange(10, 300)) / 10000)
                for level in levels
            ]
            for side, sign in (("bids", -1), ("asks", 1))
        }

    def note_limited(self) -> None:
        """Count a request that was refused because there were too many."""
        self.limited += 1
        _write(self.file, "limited", {})

    def step(self) -> None:
        """Let the price walk as long as time has passed, and let it meet what rests."""
        passed = int((time.monotonic() - self._stepped_at) / _STEP_S)
        if not passed:
            return
        self._stepped_at += passed * _STEP_S
        for symbol in self._mid:
            for _ in range(min(passed, 20)):
                pull = (START[symbol] - self._mid[symbol]) / START[symbol] * D("0.2")
                move = D(self.rng.randrange(-100, 101)) / 100_000 + pull
                self._mid[symbol] = _to_step(self._mid[symbol] * (1 + move), D("0.01"))
        resting = [order for order in self.orders.values() if order.is_open]
        for order in sorted(resting, key=lambda each: (-each.price, each.order_id)):
            sign = 1 if order.side == "BUY" else -1
            if self.ending or sign * self._mid[order.symbol] <= sign * order.price:
                part = _to_step(order.left * D(self.rng.choice(["0.3", "0.6", "1"])), STEPS[order.symbol][0])
                self._fill(order, part or order.left, order.price)

    def _take(self, order: SpotOrder) -> None:
        """Let an order meet the levels of the other side; what is left rests, or expires."""
        levels = self.depth(order.symbol)["asks" if order.side == "BUY" else "bids"]
        sign = 1 if order.side == "BUY" else -1
        meets = [level for level in levels if not order.price or sign * level[0] <= sign * order.price]
        if order.tif == "FOK" and sum(size for _, size in meets) < order.quantity:
            meets = []
        for price, size in meets:
            if order.is_open:
                self._fill(order, min(size, order.left), price)
        if order.is_open and (order.type == "MARKET" or order.tif != "GTC"):
            self._end(order, "EXPIRED")

    def _fill(self, order: SpotOrder, quantity: Decimal, price: Decimal) -> None:
        is_buy = order.side == "BUY"
        fee = (quantity if is_buy else quantity * price) * FEE
        late = self.rng.randrange(1000) if self.delays and self.rng.random() < 0.3 else self.late_ms
        at = now_ms()
        trade = Trade(
            trade_id=len(self.trades) + 1,
            order_id=order.order_id,
            symbol=order.symbol,
            side=order.side,
            quantity=quantity,
            price=price,
            fee=fee.quantize(PLACE, ROUND_DOWN),
            fee_asset=order.symbol.removesuffix("USDT") if is_buy else "USDT",
            at=at,
            shown_at=at + late,
        )
        _write(self.file, "trade", asdict(trade))
        self._book(trade)

    def _book(self, trade: Trade) -> None:
        order = self.orders[trade.order_id]
        self.trades.append(trade)
        order.filled += trade.quantity
        order.paid += trade.quantity * trade.price
        order.status = "PARTIALLY_FILLED" if order.left else "FILLED"

    def _end(self, order: SpotOrder, status: str) -> None:
        order.status = status
        _write(self.file, "end", {"order_id": order.order_id, "status": status})

    def _replay(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "order":
            self.orders[body["order_id"]] = SpotOrder(**body)
        elif kind == "trade":
            self._book(Trade(**body))
        elif kind == "limited":
            self.limited += 1
        else:
            self.orders[body["order_id"]].status = body["status"]


def now_ms() -> int:
    return int(time.time() * 1000)


def _to_step(value: Decimal, step: Decimal) -> Decimal:
    return (value / step).to_integral_value(ROUND_DOWN) * step


def _write(file: Path, kind: str, body: dict[str, Any]) -> None:
    with file.open("a") as opened:
        opened.write(json.dumps({"kind": kind, **body}, default=str) + "\n")


def _read(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """What was written, but for a last line that a kill has cut. (Any: fields of orders and trades.)"""
    text = file.read_text() if file.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    file.write_text(whole)
    found = []
    for line in whole.splitlines():
        body = json.loads(line)
        numbers = {name: D(body[name]) for name in body.keys() & _NUMBERS}
        found.append((body.pop("kind"), {**body, **numbers}))
    return found
