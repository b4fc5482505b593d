"""A world in paper trading whose strategies set targets, for the tests of targets."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from activities.brokers.paper import PaperBroker
from activities.fence.acceptance import OrderAcceptance
from activities.fence.order_log import SqlOrderLog
from activities.ledger.sql import SqlLedger
from activities.storage.database import Database
from qmtl_sdk.contracts.ledger import PositionFilter
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.targets import Target, TargetVerdict
from tests.support.desk import Desk, router

BAR = datetime(2024, 1, 2, tzinfo=UTC)
CAPITAL: dict[str, Any] = {"capital": {"amount": "10000"}, "instruments": {"lot": "1"}}


@dataclass
class Book:
    """A world in paper trading, whose strategies set targets."""

    database: Database
    strategies: int = 1
    spec: dict[str, Any] = field(default_factory=lambda: dict(CAPITAL))

    def __post_init__(self) -> None:
        self.desk = Desk(self.database, strategies=self.strategies, **self.spec)
        self.desk.apply("dryrun")
        self.session = self.desk.session()
        self.acceptance = OrderAcceptance(self.database)
        self.routing = router(self.database, PaperBroker("paper"))
        self.bar = BAR

    def target(self, value: str, unit: str = "weight", **fields: Any) -> Target:
        found = {"unit": unit, "value": value, "decided_at": self.bar, **fields}
        return self.desk.target(
            found.pop("session_id", self.session), found.pop("epoch", self.desk.epoch), **found
        )

    def set(self, *targets: Target) -> list[TargetVerdict]:
        found = self.acceptance.publish(targets, self.desk.caller)
        assert all(isinstance(item, TargetVerdict) for item in found)
        return found  # type: ignore[return-value]

    def ordered(self, value: str, unit: str = "weight", **fields: Any) -> Decimal:
        """What the fence orders for a target, which it accepts."""
        (verdict,) = self.set(self.target(value, unit, **fields))
        assert verdict.accepted, verdict.reason
        return verdict.ordered

    def refused(self, value: str, unit: str = "weight", **fields: Any) -> Refusal | None:
        (verdict,) = self.set(self.target(value, unit, **fields))
        assert not verdict.accepted
        assert verdict.ordered == 0
        return verdict.reason

    def reweigh(self, weight: str) -> None:
        """Give the first strategy another weight."""
        self.desk.apply("dryrun", weights={self.desk.strategies[0]: weight})

    def next_bar(self) -> None:
        self.bar += timedelta(days=1)

    def fill(self) -> None:
        """Let the paper broker fill all open orders."""
        while self.routing.step():
            pass

    def position(self, strategy: int = 0, symbol: str = "AAPL", account: str = "paper") -> Decimal:
        found = SqlLedger(self.database).positions(self.desk.world, PositionFilter())
        held = {(item.strategy_id, item.symbol, item.account): item.position.quantity for item in found}
        return held.get((self.desk.strategies[strategy], symbol, account), Decimal(0))

    def orders(self) -> list[tuple[str, Decimal]]:
        found = SqlOrderLog(self.database).orders(self.desk.world, OrderFilter(limit=1000))
        return [(record.state.value, record.order.signed) for record in found]
