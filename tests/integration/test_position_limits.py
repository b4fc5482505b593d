"""Limits on positions and losses, checked with the ledger and open orders."""

import time
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from activities.brokers.paper import PaperBroker
from activities.fence.acceptance import OrderAcceptance
from activities.fence.bookings import SqlBookings
from activities.fence.store import update_world
from activities.ledger.exposures import WHOLE_WORLD, ExposureKey, all_totals
from activities.ledger.sql import SqlLedger, held_list
from activities.order_settings import OrdersSettings
from activities.storage.database import Database
from qmtl_sdk.contracts.ledger import Booking, PositionFilter
from qmtl_sdk.contracts.refusals import Refusal
from qmtl_sdk.contracts.share_changes import newest_marks
from qmtl_sdk.contracts.worlds import WorldUpdate
from tests.support.desk import Desk, router

D = Decimal


class Trader:
    """Strategies in paper trading in a world with limits."""

    def __init__(
        self,
        database: Database,
        strategies: int = 1,
        name: str = "w",
        account: dict[str, Any] | None = None,
        broker: str = "paper",
        **limits: Any,
    ) -> None:
        self.database = database
        self.desk = Desk(database, name, strategies=strategies, order_limits=limits)
        self.desk.apply("dryrun")
        self.sessions = [self.desk.session(name) for name in self.desk.strategies]
        found = {"account_limits": {"paper": account} if account else {}, "dryrun_broker": broker}
        settings = OrdersSettings.model_validate(found)
        self.acceptance = OrderAcceptance(database, settings)
        self.routing = router(database, PaperBroker("paper"))

    def asks(self, *orders: tuple[str, str], strategy: int = 0, symbol: str = "AAPL") -> list[str]:
        """The answers to orders of one request: each a signed quantity and a price."""
        asked = [
            self.desk.order(
                self.sessions[strategy],
                self.desk.epoch,
                strategy_id=self.desk.strategies[strategy],
                symbol=symbol,
                side="sell" if quantity.startswith("-") else "buy",
                quantity=quantity.removeprefix("-"),
                reference_price=price or None,
            )
            for quantity, price in orders
        ]
        found = self.acceptance.publish(asked, self.desk.caller)
        return [item.reason.value if item.reason else "" for item in found]

    def trades(self, quantity: str, price: str, strategy: int = 0, symbol: str = "AAPL") -> str:
        """The answer to one order, which is filled where it is accepted."""
        (answer,) = self.asks((quantity, price), strategy=strategy, symbol=symbol)
        while self.routing.step():
            pass
        return answer


def test_a_position_is_limited_in_units_and_as_an_amount(database: Database) -> None:
    trader = Trader(database, strategy={"max_position": "100", "max_position_notional": "6000"})
    assert trader.trades("100", "50") == ""
    assert trader.trades("1", "50") == "position_limit"
    assert trader.trades("-60", "50") == ""  # a reduction
    assert trader.trades("60", "70") == "position_limit"  # 100 at 70
    assert trader.trades("-140", "40") == ""  # through zero, to -100
    assert trader.trades("-1", "40") == "position_limit"
    assert trader.trades("60", "999") == ""  # a reduction, at whatever price
    assert trader.asks(("9", ""), symbol="KO") == ["position_limit"]  # its price is not known


def test_open_orders_count_as_if_they_were_filled(database: Database) -> None:
    trader = Trader(database, strategy={"max_position": "100"})
    assert trader.asks(("60", "50"), ("60", "50"), ("-100", "50"), ("40", "50")) == [
        "",
        "position_limit",
        "",
        "",
    ]
    assert trader.asks(("1", "50")) == ["position_limit"]  # of another request


def test_all_positions_together_are_limited_by_strategy_and_world(database: Database) -> None:
    limits = {"strategy": {"max_gross_notional": "1000"}, "world": {"max_gross_notional": "1500"}}
    trader = Trader(database, 2, **limits)
    assert trader.trades("6", "100") == ""
    assert trader.trades("-5", "100", symbol="KO") == "gross_limit"  # short positions add up, too
    assert trader.trades("-4", "100", symbol="KO") == ""
    assert trader.trades("6", "100", strategy=1) == "gross_limit"  # of the world
    assert trader.trades("5", "100", strategy=1) == ""
    assert trader.asks(("-1", "100"), ("-1", "100")) == ["", ""]
    assert trader.asks(("1", "100"), strategy=1) == ["gross_limit"]  # reductions that are open free nothing


def test_what_is_lost_is_limited_and_reductions_pass(database: Database) -> None:
    trader = Trader(database, 2, strategy={"max_loss": "100"}, world={"max_drawdown": "300"})
    assert trader.trades("10", "100") == ""
    assert trader.trades("-5", "89") == ""  # lost 55, and 55 more on what is held
    assert trader.trades("1", "89") == "loss_limit"
    assert trader.trades("-6", "89") == "loss_limit"  # it would turn the position around
    assert trader.trades("-5", "89") == ""
    assert trader.trades("1", "1", symbol="KO") == "loss_limit"
    assert trader.trades("10", "100", strategy=1) == ""  # the other strategy goes on
    assert trader.trades("-5", "150", strategy=1) == ""  # +500
    assert trader.trades("-3", "80", strategy=1) == ""  # from +390 in all to +50
    assert trader.trades("1", "80", strategy=1) == "drawdown_limit"
    assert trader.trades("-2", "80", strategy=1) == ""


def test_an_account_is_limited_over_all_worlds(database: Database) -> None:
    first = Trader(database, account={"max_gross_notional": "1000"})
    second = Trader(database, name="v", account={"max_gross_notional": "1000"})
    assert first.trades("7", "100") == ""
    assert second.trades("4", "100") == "gross_limit"
    assert second.trades("3", "100") == ""
    assert first.trades("1", "100") == "gross_limit"
    assert first.trades("-7", "100") == ""
    assert second.trades("7", "100") == ""


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_notional": "5000"}, "notional_limit"),
        ({"strategy": {"max_position_notional": "5000"}}, "position_limit"),
        ({"strategy": {"max_gross_notional": "5000"}}, "gross_limit"),
    ],
)
def test_an_order_is_valued_at_what_its_account_knows_of_the_symbol(
    database: Database, limits: dict[str, Any], reason: str
) -> None:
    """Whoever named a price of 0.01 passed every limit of value."""
    other = Trader(database, name="v")
    assert other.trades("1", "100") == ""
    trader = Trader(database, **limits)
    assert trader.trades("51", "0.01") == reason
    assert trader.asks(("30", "0.01"), ("30", "0.01"))[1] == ("" if reason == "notional_limit" else reason)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_notional": "5000"}, "notional_limit"),
        ({"strategy": {"max_position_notional": "5000"}}, "position_limit"),
        ({"strategy": {"max_gross_notional": "5000"}}, "gross_limit"),
        ({"world": {"max_gross_notional": "5000"}}, "gross_limit"),
        ({"account": {"max_gross_notional": "5000"}}, "gross_limit"),
    ],
)
def test_a_limit_of_value_refuses_a_symbol_whose_price_nobody_knows_at_a_broker(
    database: Database, limits: dict[str, Any], reason: str
) -> None:
    unknown = Trader(database, broker="ccxt", **limits)
    assert unknown.trades("51", "0.01") == "unknown_price"
    known = Trader(database, name="v", broker="ccxt", prices={"AAPL": "100"}, **limits)
    assert known.trades("51", "0.01") == reason
    assert known.trades("1", "100") == ""
    assert unknown.trades("1", "100") == "", "the account has traded it"
    free = Trader(database, name="u", broker="ccxt", strategy={"max_position": "100"})
    assert free.trades("51", "0.01", symbol="KO") == "", "no limit values it"


def test_an_old_mark_of_its_own_does_not_pass_a_limit(database: Database) -> None:
    """Who had once traded a symbol at 1 got 1,000 of it through a limit of 1,000 when others paid 100."""
    trader = Trader(database, 2, max_notional="1000", prices={"AAPL": "500"})
    assert (trader.trades("1", "1"), trader.trades("-1", "1")) == ("", "")
    assert trader.trades("1", "100", strategy=1) == ""
    assert trader.trades("11", "1") == "notional_limit"
    assert trader.trades("10", "1") == "", "what an operator names does not count beside a mark"


def test_a_dividend_does_not_make_an_old_mark_the_newest(database: Database) -> None:
    trader = Trader(database, 3, max_notional="1000")
    assert (trader.trades("1", "1"), trader.trades("1", "100", strategy=1)) == ("", "")
    dividend = {"booking_id": "d", "kind": "dividend", "amount": "0.01", "reason": "paid"}
    place = {"strategy_id": trader.desk.strategies[0], "account": "paper", "symbol": "AAPL"}
    SqlBookings(database).record("w", Booking.model_validate({**dividend, **place}), "olga")
    assert trader.trades("11", "1", strategy=2) == "notional_limit"
    with database.read() as session:
        held = held_list(session.connection(), "w")
    assert newest_marks(held) == {("paper", "AAPL"): D(100)}, "what a schedule requests"


def test_limits_hold_for_the_next_order_after_they_were_lowered(database: Database) -> None:
    trader = Trader(database)
    assert trader.trades("50", "100") == ""
    change = WorldUpdate.model_validate({"order_limits": {"strategy": {"max_position": "20"}}})
    with database.write("olga") as tx:
        update_world(tx, "w", change, "olga")
    assert trader.trades("1", "100") == "position_limit"
    assert trader.trades("-10", "100") == ""


@pytest.mark.parametrize("seed", range(10))
def test_exposures_are_what_positions_add_up_to(database: Database, seed: int) -> None:
    rng, trader = Random(seed), Trader(database, 2)
    for _ in range(12):
        quantity = rng.choice([-3, -2, -1, 1, 2, 3])
        strategy = rng.randrange(2)
        assert trader.trades(str(quantity), str(rng.randint(50, 150)), strategy, rng.choice(["A", "B"])) == ""
    with database.read() as session:
        found = all_totals(session.connection(), "w")
    held = SqlLedger(database).positions("w", PositionFilter(closed=True))
    for name in (*trader.desk.strategies, WHOLE_WORLD):
        mine = [item.position for item in held if name in (item.strategy_id, WHOLE_WORLD)]
        exposure = found.get(ExposureKey(name, "paper"))
        if not mine:
            assert exposure is None
            continue
        assert exposure is not None
        assert exposure.gross == sum(abs(item.quantity) * item.mark for item in mine)
        assert exposure.profit == sum(item.cash + item.quantity * item.mark for item in mine)
        assert exposure.peak >= max(exposure.profit, D(0))


def test_the_price_that_an_author_writes_does_not_lift_a_limit(database: Database) -> None:
    trader = Trader(database, strategy={"max_position_notional": "6000", "max_gross_notional": "6000"})
    assert trader.trades("100", "50") == ""
    assert trader.asks(("1000000", "0.000000000001")) == ["position_limit"]


def test_many_orders_beside_many_open_ones_are_checked_in_time(database: Database) -> None:
    """Every order added up all open ones, three times: 500 beside 1,000 took 17 s."""
    trader = Trader(database, world={"max_gross_notional": "1000000"})
    for symbol in ("A", "B"):
        assert set(trader.asks(*[("1", "100")] * 400, symbol=symbol)) == {""}
    began = time.process_time()
    assert set(trader.asks(*[("1", "100")] * 400, symbol="C")) == {""}
    assert time.process_time() - began < 2


def test_a_target_beyond_a_limit_leaves_no_row_and_counts_for_no_breaker(database: Database) -> None:
    trader = Trader(database, strategy={"max_position": "10"})
    desk = trader.desk
    for _ in range(3):
        target = desk.target(trader.sessions[0], desk.epoch, unit="units", value="50")
        (verdict,) = trader.acceptance.publish([target], desk.caller)
        assert verdict.reason is Refusal.POSITION_LIMIT
    assert "refused" not in desk.logged()
