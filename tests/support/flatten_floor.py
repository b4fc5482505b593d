"""A world whose venue does what a test says, for the tests of flattens."""

import re
import uuid
from decimal import Decimal
from typing import Any

from sqlalchemy import text

from activities.fence.acceptance import OrderAcceptance
from activities.fence.fills import SqlFills
from activities.fence.flattens import SqlFlattens
from activities.fence.open_order import read_open
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.ledger.sql import SqlLedger
from activities.order_settings import DEFAULT_ACCOUNTS
from activities.storage.database import Database
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.flattening import FlattenRequest, FlattenResult
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import Order, OrderRecord, OrderReport
from tests.support.desk import Desk
from tests.support.flatten_model import flatten_violations

ACCOUNTS = DEFAULT_ACCOUNTS
OPEN = {"accepted", "sent", "partially_filled"}


def wanted(strategy: str | None = None, flatten_id: str = "") -> FlattenRequest:
    """A request to flatten; a new one unless it has an id."""
    return FlattenRequest(flatten_id=flatten_id or uuid.uuid4().hex, strategy=strategy, reason="enough")


class Floor:
    """A world in paper trading. Its orders are sent and filled as a test says."""

    def __init__(self, database: Database, strategies: int = 1) -> None:
        desk = Desk(database, strategies=strategies)
        desk.apply("dryrun")
        self._over(desk)

    @classmethod
    def over(cls, desk: Desk) -> "Floor":
        """The floor of a world that is there."""
        floor = cls.__new__(cls)
        floor._over(desk)
        return floor

    def _over(self, desk: Desk) -> None:
        self.desk, self.database = desk, desk.database
        self.world = self.desk.world
        self.strategy = self.desk.strategies[0]
        self.domain = "dryrun"
        self.open = SqlOpenOrders(self.database, 300.0)
        self.flattens = SqlFlattens(self.database, ACCOUNTS, 20.0)
        self.log = SqlOrderLog(self.database)
        self.fills = SqlFills(self.database)
        self.acceptance = OrderAcceptance(self.database)
        self._sessions: dict[tuple[str, str], str] = {}

    def order(self, side: str, quantity: str, sent: bool = True, strategy: str = "", **fields: Any) -> Order:
        """An accepted order of a strategy, which was sent to the venue."""
        mine, key = strategy or self.strategy, (strategy, self.domain)
        if key not in self._sessions:
            self._sessions[key] = self.desk.session(mine, self.domain)
        asked = {"side": side, "quantity": quantity, "strategy_id": mine, "execution_domain": self.domain}
        order = self.desk.order(self._sessions[key], self.desk.epoch, **asked, **fields)
        (verdict,) = self.acceptance.publish([order], self.desk.caller)
        assert verdict.accepted, verdict
        if sent:
            assert self.send() == [order.order_id]
        return order

    def hold(self, quantity: str, **fields: Any) -> None:
        """Let the strategy hold so much, by an order that was filled."""
        side = "sell" if quantity.startswith("-") else "buy"
        order = self.order(side, quantity.removeprefix("-"), **fields)
        self.says(order, "filled", str(order.quantity))

    def go_live(self) -> None:
        """Let the strategy trade live from now on."""
        self.desk.apply("live")
        self.domain = "live"

    def send(self) -> list[str]:
        """Do what the router does with accepted orders. Returns the ids of those that left."""
        accepted = [item.order for item in self.records() if item.state == "accepted"]
        return self.send_again(*accepted)

    def send_again(self, *orders: Order) -> list[str]:
        """Do it with orders that may have been sent, and never arrived."""
        ids = [order.order_id for order in orders]
        with self.database.read() as session:
            found = read_open(session.connection(), ids)
        return [order.order_id for order in self.open.mark_sent(self.world, found, 60.0)] if found else []

    def says(self, order: Order, state: str, *quantities: str, price: str = "100", reason: str = "") -> None:
        """Let the venue report a state, and new fills of these quantities."""
        fills = tuple(self.fill(order, quantity, price) for quantity in quantities)
        report = {"order_id": order.order_id, "state": state, "fills": fills, "reason": reason}
        self.open.record(self.world, [OrderReport.model_validate(report)], {})

    def fill(self, order: Order, quantity: str, price: str = "100") -> Fill:
        named = {"fill_id": uuid.uuid4().hex, "account": ACCOUNTS[order.execution_domain]}
        return Fill.model_validate({**named, "quantity": quantity, "price": price})

    def fill_all(self) -> None:
        """Let the venue fill what is open, and whatever follows, until nothing is."""
        for _ in range(50):
            self.send()
            opened = self.opened()
            if not opened:
                return
            for item in opened:
                done = item.fill.quantity if item.fill else Decimal(0)
                self.says(item.order, "filled", str(item.order.quantity - done))
        raise AssertionError("orders follow without end")

    def flatten(self, strategy: str | None = None, flatten_id: str = "") -> FlattenResult:
        return self.flattens.request(self.world, wanted(strategy, flatten_id), "olga")

    def records(self) -> list[OrderRecord]:
        return self.log.orders(self.world, OrderFilter(limit=1000))

    def opened(self, origin: str = "") -> list[OrderRecord]:
        """Open orders, of one origin if given."""
        return [i for i in self.records() if i.state in OPEN and origin in ("", i.order.origin)]

    def closing(self) -> list[Order]:
        """The orders of flattens, as they were made."""
        return [item.order for item in self.records() if item.order.origin == "flatten"]

    def closing_still(self) -> list[Decimal]:
        """What open orders of flattens may still fill (positive buys), without those to be cancelled."""
        query = text(
            "SELECT quantity, filled_quantity FROM open_order "
            "WHERE world_id = :w AND origin = 'flatten' AND cancel_reason = ''"
        )
        with self.database.read() as session:
            found = session.connection().execute(query, {"w": self.world})
            amounts = [(Decimal(row[0]), Decimal(row[1] or 0)) for row in found]
        return [ordered - filled.copy_sign(ordered) for ordered, filled in amounts]

    def state_of(self, order: Order) -> str:
        (found,) = (item.state.value for item in self.records() if item.order.order_id == order.order_id)
        return found

    def held(self, strategy: str = "", symbol: str = "AAPL") -> Decimal:
        """What the strategy holds."""
        found = SqlLedger(self.database).positions(self.world, PositionFilter())
        mine = [item for item in found if item.strategy_id == (strategy or self.strategy)]
        return sum((item.position.quantity for item in mine if item.symbol == symbol), Decimal(0))

    def under_way(self) -> int:
        """How many flattens are under way."""
        with self.database.read() as session:
            query = text("SELECT count(*) FROM flattening WHERE world_id = :w AND ended_at = ''")
            return int(session.connection().execute(query, {"w": self.world}).scalar_one())

    def pass_time(self) -> None:
        """Let the time come for which flattens wait, and continue them."""
        with self.database.write("test", bookkeeping=True) as tx:
            found = tx.connection.execute(text("SELECT * FROM flattening WHERE next_at <> ''")).all()
            change = text("UPDATE flattening SET next_at = '2024', faults = :f WHERE strategy_id = :s")
            for row in found:
                faults = re.sub(r'"next_at":"[^"]+"', '"next_at":"2024"', row.faults)
                tx.connection.execute(change, {"f": faults, "s": row.strategy_id})
        self.flattens.continue_due()

    def violations(self) -> list[str]:
        """What orders of flattens did that they may not."""
        with self.database.read() as session:
            query = text("SELECT * FROM order_log WHERE world_id = :w ORDER BY seq")
            return flatten_violations(session.connection().execute(query, {"w": self.world}).mappings().all())

    def audit(self) -> list[str]:
        """What the audit trail says was done in the world, in its order."""
        with self.database.read() as session:
            query = text("SELECT action FROM audit WHERE chain = :w ORDER BY number")
            return list(session.connection().execute(query, {"w": self.world}).scalars())

    def audited(self, action: str) -> list[str]:
        """Who did this, as the audit trail says."""
        with self.database.read() as session:
            query = text("SELECT actor FROM audit WHERE chain = :w AND action = :a ORDER BY number")
            found = session.connection().execute(query, {"w": self.world, "a": action})
            return list(found.scalars())
