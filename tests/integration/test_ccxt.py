"""The broker `ccxt` against an exchange that speaks Binance's API in a process of its own."""

import json
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from activities.brokers import ccxt_broker, ccxt_trades
from activities.brokers.broker import AcceptedOrder, Broker
from activities.brokers.calls import BrokerCalls, BrokerUnavailableError
from activities.brokers.client_ids import client_id
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import Order, order_id_prefix
from tests.chaos.spot_server import KEY, SECRET
from tests.support.machine import wait_for
from tests.support.spot import Spot, kind_spot

D = Decimal


@pytest.fixture(scope="module")
def spot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spot]:
    with kind_spot(tmp_path_factory.mktemp("spot")) as found:
        yield found


@pytest.fixture(scope="module")
def broker(spot: Spot) -> Broker:
    return spot.broker()


def order(side: str, quantity: str, price: str | None, **fields: Any) -> AcceptedOrder:
    """An accepted order in BTC. The price of the exchange walks near 30,000."""
    base = {
        "order_id": order_id_prefix("w", "s") + uuid.uuid4().hex,
        "world_id": "w",
        "strategy_id": "s",
        "execution_domain": "dryrun",
        "epoch": 1,
        "symbol": "BTC",
        "side": side,
        "quantity": quantity,
        "reference_price": price,
    }
    return AcceptedOrder(Order.model_validate({**base, **fields}), datetime.now(UTC))


def placed(broker: Broker, item: AcceptedOrder) -> str:
    """Place an order; return its state, with the reason of a rejection."""
    (report,) = broker.place([item], datetime.now(UTC))
    return f"{report.state} {report.reason}".strip()


def state(broker: Broker, item: AcceptedOrder) -> str:
    reports = broker.find([item], datetime.now(UTC))
    return reports[-1].state if reports else "unknown"


def at_the_exchange(spot: Spot, item: AcceptedOrder) -> list[Any]:
    name = client_id(item.order.order_id)
    return [found for found in spot.control("all")["orders"] if found["client_id"] == name]


def test_an_order_is_filled_and_the_books_say_what_is_held(spot: Spot, broker: Broker) -> None:
    before, money = broker.positions(datetime.now(UTC))["BTC"], broker.account(datetime.now(UTC))
    bought = order("buy", "0.02", "31000")
    assert placed(broker, bought) == "sent"
    wait_for(lambda: state(broker, bought) == "filled", "the order's end")
    (report,) = broker.find([bought], datetime.now(UTC))
    units = sum((fill.quantity for fill in report.fills), D(0))
    fees = sum((fill.fee_units for fill in report.fills), D(0))
    assert (units, fees) == (D("0.02"), D("0.00002"))
    now = datetime.now(UTC)
    assert broker.positions(now)["BTC"] - before == units - fees
    paid = sum((fill.quantity * fill.price for fill in report.fills), D(0))
    assert money.cash is not None
    assert broker.account(now).cash == money.cash - paid
    assert broker.account(now).currency == "USDT"


def test_a_later_process_finds_an_order_by_its_id(spot: Spot, broker: Broker) -> None:
    resting = order("buy", "0.01", "20000")
    placed(broker, resting)
    later = spot.broker()
    assert later.open_orders(datetime.now(UTC)) == [resting.order.order_id]
    assert state(later, resting) == "sent"
    later.cancel([resting], datetime.now(UTC))
    later.cancel([resting], datetime.now(UTC))
    assert state(later, resting) == "cancelled"
    assert later.open_orders(datetime.now(UTC)) == []
    assert state(later, order("buy", "0.01", "20000")) == "unknown"


def test_an_id_that_the_venue_has_is_no_rejection(spot: Spot, broker: Broker) -> None:
    resting = order("buy", "0.01", "20000")
    assert [placed(broker, resting) for _ in range(2)] == ["sent", "sent"]
    assert len(at_the_exchange(spot, resting)) == 1
    broker.cancel([resting], datetime.now(UTC))


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (order("buy", "0.00015", "30000"), "the quantity 0.00015 is none of BTC/USDT, whose step is 0.0001"),
        (order("buy", "0.00001", "30000"), "the quantity 0.00001 is none of BTC/USDT, whose step is 0.0001"),
        (order("buy", "9000.1", "30000"), "the quantity 9000.1 is beyond the maximum of BTC/USDT, 9000"),
        (order("sell", "500", "30000"), "InsufficientFunds: Account has insufficient balance"),
        (order("buy", "1", "30000", symbol="XRP"), "the broker spot does not trade XRP"),
        (order("buy", "1", None), "it has no reference price"),
        (order("buy", "1", "30000", order_id=order_id_prefix("w", "s") + "mine"), "its id has no short form"),
    ],
)
def test_what_the_venue_cannot_take_is_rejected_and_never_changed(
    spot: Spot, broker: Broker, item: AcceptedOrder, reason: str
) -> None:
    assert placed(broker, item).startswith(f"rejected {reason}")
    assert at_the_exchange(spot, item) == []


def test_nothing_is_sent_late_in_a_call(spot: Spot, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that takes over believes that a call has ended after 5 s."""
    monkeypatch.setattr(ccxt_broker, "_SECOND_REQUEST_S", 0.0)
    late = order("buy", "0.01", "20000")
    with pytest.raises(QmtlError, match="too slowly"):
        placed(broker, late)
    assert at_the_exchange(spot, late) == []


@pytest.mark.parametrize(("side", "price"), [("buy", "19999.99"), ("sell", "40000")])
def test_a_limit_price_is_no_worse_than_the_reference(
    spot: Spot, broker: Broker, side: str, price: str
) -> None:
    if side == "sell":
        bought = order("buy", "0.02", "31000")
        placed(broker, bought)
        wait_for(lambda: state(broker, bought) == "filled", "the order's end")
    resting = order(side, "0.01", "19999.997" if side == "buy" else "39999.991")
    assert placed(broker, resting) == "sent"
    assert [found["price"] for found in at_the_exchange(spot, resting)] == [price]
    broker.cancel([resting], datetime.now(UTC))


def test_a_market_order_that_finds_too_little_ends_with_what_it_got(spot: Spot) -> None:
    broker = spot.broker(order_type="market")
    large = order("buy", "50", None)
    assert placed(broker, large) == "sent"
    (report,) = broker.find([large], datetime.now(UTC))
    assert report.state == "expired"
    assert 0 < sum(fill.quantity for fill in report.fills) < 50


def test_fills_are_read_page_by_page_and_each_names_its_order(
    spot: Spot, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = datetime.now(UTC)
    orders = [order("buy", "0.05", "31000") for _ in range(5)]
    for item in orders:
        placed(broker, item)
    wait_for(lambda: all(state(broker, item) == "filled" for item in orders), "the end of all orders")
    expected = {
        (report.order_id, fill.fill_id) for report in broker.find(orders, began) for fill in report.fills
    }
    monkeypatch.setattr(ccxt_trades, "_PAGE", 8)
    monkeypatch.setattr(ccxt_trades, "_ONE_BY_ONE", 1)
    found = spot.broker().fills_since(began - timedelta(seconds=1), datetime.now(UTC))
    assert {(item.order_id, item.fill.fill_id) for item in found} >= expected


def test_an_order_ends_when_its_trades_are_listed(tmp_path: Path) -> None:
    with kind_spot(tmp_path) as spot:
        spot.control("late")
        broker, bought = spot.broker(), order("buy", "0.02", "31000")
        placed(broker, bought)
        seen = list[tuple[str, Decimal]]()

        def ended() -> bool:
            (report,) = broker.find([bought], datetime.now(UTC))
            seen.append((report.state, sum((fill.quantity for fill in report.fills), D(0))))
            return report.state == "filled"

        wait_for(ended, "the order's end")
        assert seen[-1] == ("filled", D("0.02"))
        assert {state for state, listed in seen if not listed} <= {"sent"}
        assert {state for state, listed in seen if 0 < listed < D("0.02")} <= {"partially_filled"}


def test_a_limit_of_requests_says_that_nobody_knows_and_makes_the_pauses_longer(tmp_path: Path) -> None:
    """Else a look-up of many orders would be cut short for ever."""
    with kind_spot(tmp_path) as spot:
        hasty = spot.broker(rate_limit_ms=1)
        with pytest.raises(QmtlError, match="DDoSProtection") as caught:
            for _ in range(200):
                hasty.open_orders(datetime.now(UTC))
        assert caught.value.code == "E_UNAVAILABLE"
        wait_for(lambda: all(_answers(hasty) for _ in range(60)), "sixty answers in a row", 30)


def _answers(broker: Broker) -> bool:
    try:
        broker.open_orders(datetime.now(UTC))
    except QmtlError:
        return False
    return True


def test_refused_credentials_are_a_fault_that_names_no_credential(
    spot: Spot, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WRONG_KEY", "planted-wrong-key")
    calls = BrokerCalls(spot.broker(api_key_env="WRONG_KEY"))
    item = order("buy", "0.01", "31000")
    with pytest.raises(BrokerUnavailableError):
        calls.place([item], float("inf"))
    assert calls.is_unavailable
    assert calls.fault.startswith("binance refuses the credentials: AuthenticationError")
    written = capsys.readouterr()
    shown = calls.fault + written.out + written.err
    assert "refuses the credentials" in written.out + written.err
    assert not [value for value in ("planted", SECRET, KEY) if value in shown], shown
    assert at_the_exchange(spot, item) == []


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"exchange": "binanc"}, r"did you mean 'binance'\?"),
        ({"symbols": "BTC/USDT,BTC/EUR"}, "each of another base and all of one quote"),
        ({"symbols": "BTC/USDT:USDT"}, "contracts are not traded"),
        ({"url": "https://example.com"}, "it would be sent the credentials"),
        ({"apiKey": "planted-key"}, "there is no option 'apiKey'"),
        ({"api_key_env": "NO_SUCH_NAME"}, "the environment has no NO_SUCH_NAME"),
        ({"api_key_env": ""}, "no credentials are named|apiKey"),
        ({"credentials_file": "/none"}, "cannot be used: No such file"),
        ({"url": ""}, "would trade with money for dryrun"),
    ],
)
def test_a_wrong_option_is_refused_without_its_value(spot: Spot, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(QmtlError, match=text) as caught:
        spot.broker(**wrong)
    assert caught.value.code == "E_CONFIG"
    assert "planted" not in repr(caught.value)


def test_credentials_may_come_from_a_file(spot: Spot, tmp_path: Path) -> None:
    file = tmp_path / "credentials.json"
    file.write_text(json.dumps({"apiKey": KEY, "secret": SECRET}))
    broker = spot.broker(credentials_file=str(file), api_key_env="", secret_env="")
    assert broker.account(datetime.now(UTC)).currency == "USDT"
