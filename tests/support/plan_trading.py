"""Runs of rebalancings and flattens in a house whose statements are recorded."""

import uuid
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from activities.fence.open_order import read_open
from activities.fence.open_orders import SqlOpenOrders
from activities.ledger.equity import daily_equity
from activities.ledger.exposures import WHOLE_WORLD
from activities.storage.database import Database
from activities.stores import Stores
from qmtl_sdk.contracts.access import Caller, Role, TokenInfo
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.flattening import FlattenRequest
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import OrderReport
from qmtl_sdk.contracts.rebalance_schedules import RebalanceScheduleBody
from tests.support.rebalance_runs import Runs
from tests.support.target_book import CAPITAL, Book


def rebalance(stores: Stores, open_orders: SqlOpenOrders, later: datetime) -> None:
    """Two runs of a world of their own, beside all the others, as far as their ends."""
    world = f"v{uuid.uuid4().hex[:6]}"
    book = Book(stores.database, strategies=2, spec={**CAPITAL, "world": world})
    for strategy in book.desk.strategies:
        session = book.desk.session(strategy)
        book.ordered("0.5", strategy_id=strategy, session_id=session)
    _fill_orders(stores, open_orders, world)
    runs = Runs(stores.database)
    runs.share(**{world: "0.00003"})
    first, second = uuid.uuid4().hex, uuid.uuid4().hex
    asked = runs.asked(first, {world: "0.00002"})
    runs.requests.trades(asked)
    runs.approved(first, {world: "0.00002"})
    runs.requests.brief(first)
    runs.requests.await_approval(first, later)
    runs.approvals.unread()
    runs.approvals.read(first)
    runs.beginnings.begin(first)
    runs.order(first, "reductions")
    runs.ends.open_orders(first)
    runs.ends.cancel(first, "enough")
    _fill_orders(stores, open_orders, world)
    runs.conclude(first)
    runs.request(second, {world: "0.00001"})
    runs.requests.roles(second)
    runs.requests.record_abort(second, "olga", "enough")
    runs.requests.unfinished()
    runs.requests.newest()
    runs.ends.conclude(second, "aborted", "enough")
    _propose(stores, world)


def _propose(stores: Stores, world: str) -> None:
    """Set a schedule, let it fire, and remove it."""
    stores.principals.add_if_new("olga", "system")
    ends = datetime.now(UTC) + timedelta(days=1)
    grants = {"*": Role.OPERATOR}
    token = TokenInfo(
        token_id=uuid.uuid4().hex,
        subject="olga",
        grants=grants,
        created_by="system",
        issuers=(),
        created_at=ends - timedelta(days=2),
        expires_at=ends,
    )
    stores.tokens.add(token)
    caller = Caller(subject="olga", token_id=token.token_id, grants=grants)
    schedules = stores.rebalance_schedules
    for number, method in enumerate(("given", "drift_bands", "equal_risk")):
        band = {"target": "0.00001"} if method == "given" else {"target": "0.00001", "width": "0.00001"}
        named = {"world_id": world, **({} if method == "equal_risk" else band)}
        described = {"method": method, "worlds": [named], "tolerance": "0"}
        schedules.set("daily", RebalanceScheduleBody.model_validate(described), caller, True)
        schedules.settle("daily", schedules.wanted("daily")[0])
        firing = stores.firings.fire("daily", ends - timedelta(hours=number + 1))
        assert firing.outcome in ("unchanged", "requested", "skipped"), firing
        if firing.run_id:
            stores.rebalancings.ends.conclude(firing.run_id, "aborted", "enough")
    schedules.all()
    schedules.names()
    schedules.set("gone", RebalanceScheduleBody.model_validate(described), caller, True)
    schedules.remove("gone", caller)
    schedules.settle("gone", schedules.wanted("gone")[0])


def _fill_orders(stores: Stores, open_orders: SqlOpenOrders, world: str) -> None:
    """Fill the open orders of a world, as its venue reports them."""
    records = stores.order_log.orders(world, OrderFilter(limit=1000))
    orders = [item.order for item in records if item.state == "accepted"]
    with stores.database.read() as session:
        found = read_open(session.connection(), [order.order_id for order in orders])
    open_orders.mark_sent(world, found, 60.0)
    for order in orders:
        named = {"fill_id": uuid.uuid4().hex, "account": "paper", "price": "9"}
        fill = Fill.model_validate({**named, "quantity": order.quantity})
        report = OrderReport(order_id=order.order_id, state="filled", fills=(fill,))
        open_orders.record(world, [report], {})


def flatten(stores: Stores, strategy: str) -> None:
    """Flatten a strategy and all, and continue one that waited for a time."""
    for named in (strategy, None):
        wanted = FlattenRequest(flatten_id=uuid.uuid4().hex, strategy=named)
        stores.flattens.request("w", wanted, "olga")
    with stores.database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text("UPDATE flattening SET next_at = '2024'"))
    stores.flattens.continue_due()
    stores.flattens.under_way("w")
    stores.flattens.left_behind("w")


def read_equity(database: Database) -> None:
    """Read the series of all owners of a world, of the whole world, and of one strategy."""
    with database.read() as session:
        for strategy in (None, WHOLE_WORLD, "strategy:s5"):
            daily_equity(session.connection(), "w", datetime.now(UTC), 30, strategy)
