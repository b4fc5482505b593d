"""Runs of rebalancings over worlds whose strategies set targets, step by step."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from activities.allocation.store import SqlAllocations
from activities.ledger.sql import SqlLedger
from activities.order_settings import OrdersSettings
from activities.rebalancing.approvals import SqlRebalanceApprovals
from activities.rebalancing.beginning import SqlRebalanceBeginnings
from activities.rebalancing.ending import SqlRebalanceEnds
from activities.rebalancing.ordering import Progress, SqlRebalanceOrders
from activities.rebalancing.requests import SqlRebalancings
from activities.rebalancing.trades import Step
from activities.storage.database import Database
from qmtl_sdk.contracts.allocations import AllocationUpdate, WorldAllocation, changes_between
from qmtl_sdk.contracts.applies import ApprovalBody
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.rebalance_runs import RebalanceApply, RebalanceStatus
from tests.support.target_book import Book

STEPS: tuple[Step, ...] = ("reductions", "increases")


class Runs:
    """Runs over a database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.allocations = SqlAllocations(database)
        self.requests = SqlRebalancings(database)
        self.approvals = SqlRebalanceApprovals(database)
        self.beginnings = SqlRebalanceBeginnings(database, OrdersSettings())
        self.orders = SqlRebalanceOrders(database, OrdersSettings())
        self.ends = SqlRebalanceEnds(database)

    def share(self, **shares: str) -> None:
        """Give worlds their first shares."""
        update = [{"world_id": name, "weight": weight} for name, weight in shares.items()]
        self.allocations.update(AllocationUpdate.model_validate({"allocations": update}), "olga")

    def asked(self, run_id: str, shares: dict[str, str], **more: Any) -> RebalanceApply:
        """A request that gives worlds new shares, over their present positions."""
        present = self.allocations.snapshot()
        after = [
            WorldAllocation(world_id=name, weight=Decimal(weight)) for name, weight in sorted(shares.items())
        ]
        before = [item for item in present.allocations if item.world_id in shares]
        request = {
            "run_id": run_id,
            "worlds": changes_between(before, after),
            "positions": self.positions(sorted(shares)),
            "instruments": {"lot": "1"},
            "allocations_etag": present.etag,
            **more.pop("request", {}),
        }
        return RebalanceApply.model_validate({"request": request, **more})

    def positions(self, worlds: Sequence[str]) -> list[dict[str, Any]]:
        return [
            {
                "world_id": world,
                "strategy_id": item.strategy_id,
                "venue": item.account,
                "symbol": item.symbol,
                "quantity": item.position.quantity,
                "mark": item.position.mark,
            }
            for world in worlds
            for item in SqlLedger(self.database).positions(world, PositionFilter(limit=10_000))
        ]

    def request(self, run_id: str, shares: dict[str, str], **more: Any) -> RebalanceStatus:
        return self.requests.request(self.asked(run_id, shares, **more), "olga")

    def approved(self, run_id: str, shares: dict[str, str], **more: Any) -> RebalanceStatus:
        found = self.request(run_id, shares, **more)
        for number in range(found.approvals_required):
            self.approvals.record(run_id, f"approver{number}", "approve", ApprovalBody())
        return found

    def begun(self, run_id: str, shares: dict[str, str], **more: Any) -> None:
        self.approved(run_id, shares, **more)
        self.beginnings.begin(run_id)

    def order(self, run_id: str, step: Step) -> Progress:
        """Order until nothing is left, or it has to wait."""
        self.orders.begin_step(run_id, step)
        while (found := self.orders.order_some(run_id, step)) is Progress.ORDERED:
            pass
        return found

    def conclude(self, run_id: str) -> RebalanceStatus:
        self.ends.settle(run_id)
        self.ends.conclude(run_id, "completed")
        return self.requests.find(run_id)


def holds(book: Book, *targets: str, symbol: str = "AAPL") -> None:
    """Let each strategy hold a share of its capital, at a price of 100."""
    for strategy, target in zip(book.desk.strategies, targets, strict=False):
        session = book.desk.session(strategy)
        book.ordered(target, strategy_id=strategy, session_id=session, symbol=symbol)
    book.fill()


def held(book: Book) -> list[Decimal]:
    """What each strategy holds."""
    return [book.position(number) for number in range(len(book.desk.strategies))]


def carried_out(runs: Runs, book: Book, run_id: str) -> RebalanceStatus:
    """Order, fill and conclude a run."""
    for step in STEPS:
        assert runs.order(run_id, step) is Progress.DONE
        book.fill()
    return runs.conclude(run_id)
