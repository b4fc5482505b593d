"""The checker is checked.

With any one check of the fence taken out, a storm of orders leaves violations (trap 16); with all of them in
place, none.
"""

import random
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
import time_machine

from activities.brokers.router import OrderRouter, brokers
from activities.fence import halts, state
from activities.fence import rules as fence
from activities.fence.acceptance import OrderAcceptance
from activities.fence.open_orders import SqlOpenOrders
from activities.fence.order_log import SqlOrderLog
from activities.fence.rules import BreakerCount
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.order_settings import OrdersSettings
from activities.storage.database import Database
from activities.storage.opening import open_database
from activities.storage.transactions import utc_before, utc_now
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.orders import Order
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.worlds import CircuitBreaker, OrderLimits, WorldUpdate
from tests.support.desk import Desk
from tests.support.fence_model import Unrouted
from tests.support.leaks import checks_without
from tests.support.machine import wait_for
from tests.support.order_checker import order_violations
from tests.support.sabotage import SABOTAGES

ACTS = (
    "halt",
    "halt strategy",
    "freeze",
    "stale",
    "inactive",
    "no live",
    "edge",
    "no router",
    "breaker",
    "limits",
    "dryrun",
    "live",
    "rollback",
)


class Storm:
    """An operator who does everything that an operator may, one thing after another, and a publisher who
    tries every kind of order at each moment.
    """

    def __init__(self, database: Database, seed: int) -> None:
        self.desk = Desk(database, strategies=2)
        self.orders = OrderAcceptance(database)
        self.halts = SqlStrategyHalts(database)
        self.rng = random.Random(seed)
        self.venues = OrderRouter(database, SqlOpenOrders(database, 300.0), brokers(OrdersSettings()))
        self.told: dict[str, str] = {}
        self.epochs = [1]
        self.sessions: dict[tuple[str, str], str] = {}
        self.ended: dict[str, str] = {}
        self.unrouted: list[Unrouted] = []

    def run(self, rounds: int) -> list[str]:
        self._to("dryrun")
        self._freeze()  # in live, the closed edge keeps orders out as well
        for _ in range(rounds):
            for act in self.rng.sample(ACTS, len(ACTS)):
                self._to("dryrun")
                if self.rng.random() < 0.5:
                    self._to("live")
                getattr(self, f"_{act.replace(' ', '_')}")()
                self._publish()
        return self.violations()

    def violations(self) -> list[str]:
        """What the checker says once everything is at rest."""
        while self.venues.step():
            pass
        return order_violations(self.desk.database, self.desk.world, self.told, unrouted=self.unrouted)

    def _session(self, strategy: str, domain: str) -> str:
        if (strategy, domain) not in self.sessions:
            self.sessions[strategy, domain] = self.desk.session(strategy, domain)
        return self.sessions[strategy, domain]

    def _publish(self) -> None:
        epoch = self.desk.epoch
        self.epochs = sorted({*self.epochs[-3:], epoch})
        batch: list[Order] = []
        for strategy in self.desk.strategies:
            for domain in ("dryrun", "live", "shadow"):
                for at in (epoch, self.epochs[0]):
                    for session in filter(None, (self._session(strategy, domain), self.ended.get(strategy))):
                        batch.append(
                            self.desk.order(
                                session,
                                at,
                                strategy_id=strategy,
                                execution_domain=domain,
                            )
                        )
        for order, verdict in zip(batch, self.orders.publish(batch, self.desk.caller), strict=True):
            self.told[order.order_id] = verdict.reason.value if verdict.reason else "accepted"
        if self.rng.random() < 0.3:
            strategy, domain = self.rng.choice(sorted(self.sessions))
            self.ended[strategy] = self.sessions.pop((strategy, domain))
            self.desk.sessions.end(self.ended[strategy], "storm", "ana")

    def _halt(self) -> None:
        self.desk.fence.halt(self.desk.world, "olga", "storm")
        self._publish()
        self.desk.steps.resume(self.desk.world, "olga", "storm")

    def _halt_strategy(self) -> None:
        strategy = self.rng.choice(self.desk.strategies)
        self.halts.halt(self.desk.world, strategy, "olga", "storm")
        self._publish()
        self.desk.decide()  # a decision does not lift it
        self._publish()
        self.halts.resume(self.desk.world, strategy, "olga", "storm")

    def _freeze(self) -> None:
        try:
            run = self.desk.request(
                weights={name: round(self.rng.random() / 2, 6) for name in self.desk.strategies}
            )
        except QmtlError:
            return  # nothing to change
        self.desk.approve(run)
        for step in (
            self.desk.steps.freeze,
            self.desk.steps.drain,
            self.desk.steps.switch,
            self.desk.steps.unfreeze,
        ):
            step(self.desk.world, run)
            self._publish()
        self.desk.steps.conclude(self.desk.world, run, "completed", "")

    def _stale(self) -> None:
        self.desk.decide(ttl=1)
        time.sleep(1.01)  # the one thing here that only time can do: a decision of a second becomes stale
        self._publish()
        self.desk.decide()

    def _inactive(self) -> None:
        self.desk.decide(active=False)
        self._publish()
        self.desk.decide()

    def _no_live(self) -> None:
        self.desk.rules.update_world(self.desk.world, WorldUpdate(allow_live=False), "olga")
        self._publish()
        self.desk.rules.update_world(self.desk.world, WorldUpdate(allow_live=True), "olga")

    def _edge(self) -> None:
        self.desk.fence.override(
            self.desk.world,
            EdgeOverride(src="domain:backtest", dst="domain:live", active=False, reason="storm"),
            "olga",
        )

    def _no_router(self) -> None:
        self.desk.route(utc_before(timedelta(seconds=OrdersSettings().no_router_after_s)))
        begun = utc_now()
        self._publish()
        ended = utc_now()
        self.unrouted.append(Unrouted(begun, ended, begun, ended))
        self.desk.route()

    def limit_orders(self, most: int | None) -> None:
        breaker = CircuitBreaker(max_orders_per_minute=most)
        self.desk.rules.update_world(self.desk.world, WorldUpdate(circuit_breaker=breaker), "olga")

    def accepted(self) -> int:
        return sum(said == "accepted" for said in self.told.values())

    def _breaker(self) -> None:
        self.limit_orders(1)
        for _ in range(3):
            self._publish()
        self.limit_orders(None)
        if self.desk.fence_row().halted:
            self.desk.steps.resume(self.desk.world, "olga", "storm")

    def _limits(self) -> None:
        for limits in (
            OrderLimits(symbols=("MSFT",)),
            OrderLimits(max_quantity=Decimal("0.5")),
            OrderLimits(max_notional=Decimal("99.99")),
            OrderLimits(),
        ):
            self.desk.rules.update_world(self.desk.world, WorldUpdate(order_limits=limits), "olga")
            self._publish()

    def _dryrun(self) -> None:
        self._to("dryrun")

    def _live(self) -> None:
        self._to("dryrun")
        self._publish()
        self._to("live")

    def _to(self, stage: str) -> None:
        weights = {name: round(self.rng.random() / 2, 6) for name in self.desk.strategies}
        with suppress(QmtlError):  # there may be nothing to bring there
            self.desk.apply(stage, weights=weights)

    def _rollback(self) -> None:
        earlier = next(
            (
                item.run_id
                for item in self.desk.requests.newest(self.desk.world)
                if item.outcome == "completed" and not item.plan.rollback_of
            ),
            None,
        )
        with suppress(QmtlError):  # it may be as it was already
            if earlier is not None:
                self.desk.apply(rollback_of=earlier)


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    found = open_database(f"sqlite:///{tmp_path_factory.mktemp('storm') / 'qmtl.db'}")
    yield found
    found.close()


def test_a_storm_breaks_no_promise(own: Database) -> None:
    storm = Storm(own, 1)
    assert storm.run(2) == []
    refused = SqlOrderLog(storm.desk.database).counts(storm.desk.world)
    assert refused.keys() >= {reason.value for reason in fence.CHECKS} - {"wrong_domain"} | {"accepted"}, (
        "every reason was tried"
    )


@pytest.mark.parametrize("leak", list(fence.CHECKS))
def test_each_check_taken_out_is_found(own: Database, leak: Refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fence, "CHECKS", checks_without(leak))
    assert Storm(own, 1).run(2)


@pytest.fixture
def unpatched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a sabotage replaces is put back."""
    for owner, name in (
        (fence, "CHECKS"),
        (BreakerCount, "__post_init__"),
        (state, "clear_halt"),
        (halts, "clear_halt"),
        (SqlOpenOrders, "due"),
    ):
        monkeypatch.setattr(owner, name, getattr(owner, name))


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("name", ["halts spuriously", "routes one strategy never"])
def test_a_fence_that_refuses_too_much_and_a_router_that_stands_still_are_found(
    own: Database, name: str
) -> None:
    SABOTAGES[name].put_in()
    assert any(SABOTAGES[name].finding in violation for violation in Storm(own, 1).run(1))


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("name", ["", "counts on after a resume"])
def test_a_circuit_breaker_that_counts_on_after_a_resume_is_found(own: Database, name: str) -> None:
    if name:
        SABOTAGES[name].put_in()
    storm = Storm(own, 1)
    storm._to("dryrun")
    wait_for(lambda: datetime.now(UTC).second < 55, "a minute that lasts long enough", 10)
    storm._breaker()
    storm._breaker()
    found = storm.violations()
    assert any(SABOTAGES[name].finding in violation for violation in found) if name else found == []


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("name", ["", "counts on in a new minute"])
def test_a_circuit_breaker_that_counts_on_in_a_new_minute_is_found(own: Database, name: str) -> None:
    if name:
        SABOTAGES[name].put_in()
    with time_machine.travel(datetime(2026, 1, 5, 12, 0, 5, tzinfo=UTC)) as clock:
        storm = Storm(own, 1)
        storm._to("dryrun")
        storm.limit_orders(10**6)
        before = storm.accepted()
        storm._publish()
        storm.limit_orders(storm.accepted() - before)
        clock.shift(timedelta(minutes=1))
        storm.sessions.clear()  # their leases have ended
        storm._publish()
        found = storm.violations()
    assert any(SABOTAGES[name].finding in violation for violation in found) if name else found == []
