"""The ledger, on SQLite and on PostgreSQL: fills a second, beside commits of as many rows, and positions.

Fills come as the router records them: those of one call of a broker in one transaction, with their rows of
the order log. Positions of 10,000 symbols are read as of a time in the middle of them.
"""

import resource
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.ledger.sql import SqlLedger
from activities.storage.opening import open_database
from benchmarks.orders import bare_commits, postgres, trading
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.orders import Order, OrderReport
from tests.support.desk import Desk

SYMBOLS = 10_000
BATCH = 500
LIMITS = {"fills_per_s": 3000, "positions_ms": 200}


def run() -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder) / "pg") as server:
        for backend, dsn in (("sqlite", f"sqlite:///{folder}/ledger.db"), ("postgres", server("ledger"))):
            yield from ledger(backend, dsn)


def ledger(backend: str, dsn: str) -> Iterator[dict[str, Any]]:
    database = open_database(dsn)
    try:
        desk = trading(database)
        ledger = SqlLedger(database)
        bare = bare_commits(dsn)
        took, middle = 0.0, datetime.now(UTC)
        for start in range(0, 2 * SYMBOLS, BATCH):
            orders = sent(desk, start)
            reports = [filled(order) for order in orders]
            began = time.perf_counter()
            SqlOpenOrders(database, 300.0).record("w", reports, {})
            took += time.perf_counter() - began
            if start + BATCH == SYMBOLS:
                middle = datetime.now(UTC)
        rate = 2 * SYMBOLS / took
        yield {
            "workload": "book fills",
            "peer": backend,
            "fills": 2 * SYMBOLS,
            "fills_per_s": round(rate),
            "asked_for": LIMITS["fills_per_s"],
            "ratio": round(rate / LIMITS["fills_per_s"], 2),
            "ratio_bare_commits": round(rate / bare, 3),
        }
        for name, as_of in (("now", None), ("as of a time", middle)):
            times = []
            for _ in range(5):
                began = time.perf_counter()
                found = ledger.positions("w", PositionFilter(as_of=as_of, limit=SYMBOLS))
                times.append(1000 * (time.perf_counter() - began))
            assert len(found) == SYMBOLS
            assert found[0].position.quantity == (Decimal(1) if as_of else Decimal(2))
            yield {
                "workload": f"positions of {SYMBOLS} symbols {name}",
                "peer": backend,
                "p50_ms": round(sorted(times)[2], 1),
                "max_ms": round(max(times), 1),
                "limit_ms": LIMITS["positions_ms"],
                "ratio_limit": round(sorted(times)[2] / LIMITS["positions_ms"], 3),
                "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            }
    finally:
        database.close()


def sent(desk: Desk, start: int) -> list[Order]:
    """Orders that the router has sent, of one symbol each."""
    session = desk.session()
    orders = [
        desk.order(session, desk.epoch, symbol=f"S{number % SYMBOLS:05}")
        for number in range(start, start + BATCH)
    ]
    verdicts = OrderAcceptance(desk.database).publish(orders, desk.caller)
    assert all(verdict.accepted for verdict in verdicts), verdicts[0]
    store = SqlOpenOrders(desk.database, 300.0)
    assert len(store.mark_sent("w", store.due(Domain.DRYRUN, BATCH)["w"], 60.0)) == BATCH
    return orders


def filled(order: Order) -> OrderReport:
    fill = Fill(
        fill_id=order.order_id,
        quantity=order.quantity,
        price=Decimal("101.25"),
        fee=Decimal("0.01"),
        account="paper",
    )
    return OrderReport(order_id=order.order_id, state="filled", fills=(fill,))
