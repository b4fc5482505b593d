"""An exchange in a process of its own, as unkind as real ones, and the broker that reaches it over HTTP.

`python -m tests.chaos.exchange PORT SEED [JOURNAL]` serves `tests.support.exchange` on loopback until it is
killed. With a journal it has what it had when it is started again: whatever it answers is written first.
Some answers come late. A call that is cut closes its connection without an answer.

The broker is found as an extension: `install` makes a folder that looks like site-packages with its entry
point. `options`: `port`, and `time_in_flight_s`, which a router must believe.
"""

import http.client
import json
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from activities.brokers.broker import AcceptedOrder, Broker, BrokerSettings, Capabilities
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import ReportedFill
from qmtl_sdk.contracts.orders import Order, OrderReport
from qmtl_sdk.contracts.reconciliation import AccountState
from tests.support.exchange import Exchange, ExchangeBroker

# Seconds that an order may be on its way after its call was cut.
IN_FLIGHT_S = 1.0

# What the broker says of it: a request of a router that was killed may not have been read yet.
TIME_IN_FLIGHT_S = 2.0

# How often an answer comes late, and by how many seconds at most.
LATE = 0.2
LATE_S = 0.3

ANSWER_LIMIT_S = 5.0


class Journal:
    """Keeps an exchange's orders in a file; with no path, nowhere."""

    def __init__(self, exchange: Exchange, path: str = "") -> None:
        """Give the exchange what the file has. A last entry that was cut by a kill was answered to nobody."""
        self._exchange = exchange
        self._told = 0
        self._doubled = 0
        self._path = Path(path) if path else None
        if self._path is None:
            return
        with self._path.open("a+b") as file:
            file.seek(0)
            whole = 0
            while True:
                try:
                    orders, told, doubled = pickle.load(file)
                except (EOFError, pickle.UnpicklingError):
                    break
                whole = file.tell()
                exchange.orders |= orders
                exchange.told += told
                exchange.doubled += doubled
            file.truncate(whole)
        self._note()

    def write(self, order_ids: Iterable[str]) -> None:
        """Write these orders as they are, and what the exchange was told since."""
        if self._path is None:
            return
        exchange = self._exchange
        orders = {name: exchange.orders[name] for name in order_ids if name in exchange.orders}
        entry = (orders, exchange.told[self._told :], exchange.doubled[self._doubled :])
        with self._path.open("ab") as file:
            file.write(pickle.dumps(entry))
        self._note()

    def _note(self) -> None:
        self._told = len(self._exchange.told)
        self._doubled = len(self._exchange.doubled)


class Handler(BaseHTTPRequestHandler):
    """`POST /place`, `/find` and `/cancel` take orders, `/books/…` give what the account holds.

    `/kind` ends the unkindness, `/unkind` brings it back; `GET /all` tells all.
    """

    exchange: Exchange
    broker: ExchangeBroker
    journal: Journal
    in_turn = threading.Lock()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        with self.exchange.lock:
            orders = {
                order_id: {
                    "order": found.order.model_dump(mode="json"),
                    "state": found.state,
                    "filled": str(found.filled),
                    "fills": [fill.model_dump(mode="json") for fill in found.fills],
                    "has_ended": found.ended_at is not None,
                }
                for order_id, found in self.exchange.orders.items()
            }
            told = [(order_id, at.isoformat()) for order_id, at in self.exchange.told]
            self._answer({"orders": orders, "told": told, "doubled": self.exchange.doubled})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path in ("/kind", "/unkind"):
            self.exchange.unkind = self.path == "/unkind"
            self._answer([])
            return
        if self.path.startswith("/books/"):
            times = [datetime.fromisoformat(at) for at in body]
            self._try(lambda: to_jsonable_python(getattr(self.broker, self.path[7:])(*times)))
            return
        orders = [(Order.model_validate(order), datetime.fromisoformat(at)) for order, at in body]
        name, now = self.path[1:], datetime.now(UTC)
        self._try(lambda: self._kept(name, orders, now))

    def _kept(self, name: str, orders: Sequence[AcceptedOrder], now: datetime) -> object:
        """Do what is asked, and write it down, also where the call is cut."""
        try:
            return to_jsonable_python(getattr(self.broker, name)(orders, now) or [])
        finally:
            self.journal.write([order.order_id for order, _ in orders])

    def _try(self, call: Callable[[], object]) -> None:
        """Answer with the result of a call, which may be cut; sometimes late."""
        try:
            with self.in_turn:
                answer = call()
        except QmtlError:  # the call is cut
            self.close_connection = True
            return
        with self.exchange.lock:
            late = self.exchange.unkind and self.exchange.rng.random() < LATE
            pause = self.exchange.rng.random() * LATE_S
        if late:
            time.sleep(pause)
        self._answer(answer)

    def _answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        try:
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except OSError:
            pass  # the router was killed


class HttpBroker(Broker):
    """A broker over the exchange at a port of this machine."""

    batch = 20
    capabilities = Capabilities(open_orders=True, positions=True, fills_since=True, account=True)

    def __init__(self, name: str, port: int, time_in_flight_s: float) -> None:
        self.name = name
        self._port = port
        self.time_in_flight_s = time_in_flight_s

    def place(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        return self._call("place", orders)

    def find(self, orders: Sequence[AcceptedOrder], now: datetime) -> list[OrderReport]:
        return self._call("find", orders)

    def cancel(self, orders: Sequence[AcceptedOrder], now: datetime) -> None:
        self._call("cancel", orders)

    def open_orders(self, now: datetime) -> list[str]:
        return TypeAdapter(list[str]).validate_python(self._books("open_orders", now))

    def positions(self, now: datetime) -> dict[str, Decimal]:
        return TypeAdapter(dict[str, Decimal]).validate_python(self._books("positions", now))

    def fills_since(self, since: datetime, now: datetime) -> list[ReportedFill]:
        return TypeAdapter(list[ReportedFill]).validate_python(self._books("fills_since", since, now))

    def account(self, now: datetime) -> AccountState:
        return AccountState.model_validate(self._books("account", now))

    def _books(self, what: str, *times: datetime) -> Any:
        """What the exchange says of the account. (Any: JSON.)"""
        return ask(self._port, f"/books/{what}", [at.isoformat() for at in times])

    def _call(self, what: str, orders: Sequence[AcceptedOrder]) -> list[OrderReport]:
        body = [(order.model_dump(mode="json"), at.isoformat()) for order, at in orders]
        return [OrderReport.model_validate(report) for report in ask(self._port, f"/{what}", body)]


def ask(port: int, path: str, body: object = None) -> Any:
    """A request to the exchange; OSError where it is cut. (Any: JSON.)"""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
    try:
        data = None if body is None else json.dumps(body)
        connection.request("GET" if data is None else "POST", path, data)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def open_http_broker(settings: BrokerSettings) -> HttpBroker:
    options = settings.options
    return HttpBroker(settings.account, int(options["port"]), float(options["time_in_flight_s"]))


def install(folder: Path) -> Path:
    """Make a folder for PYTHONPATH in which the broker is an installed package's."""
    meta = folder / "site" / "exchange-1.0.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: exchange\nVersion: 1.0\n")
    entry = "[qmtl.brokers]\nexchange = tests.chaos.exchange:open_http_broker\n"
    (meta / "entry_points.txt").write_text(entry)
    return meta.parent


if __name__ == "__main__":
    Handler.exchange = Exchange(int(sys.argv[2]), in_flight_s=IN_FLIGHT_S)
    Handler.broker = ExchangeBroker(Handler.exchange)
    Handler.journal = Journal(Handler.exchange, *sys.argv[3:4])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
