"""Each exchange that the broker `ccxt` takes is sent, asked for and told to cancel orders by their names."""

import sys
from typing import Any

import pytest

from activities.brokers.ccxt_options import EXCHANGES, CcxtOptions, Credentials
from activities.brokers.ccxt_venue import CcxtVenue
from activities.brokers.client_ids import client_id
from qmtl_sdk.contracts.errors import QmtlError

MARKET = {
    "id": "BTCUSDT",
    "symbol": "BTC/USDT",
    "base": "BTC",
    "quote": "USDT",
    "baseId": "BTC",
    "quoteId": "USDT",
    "spot": True,
    "type": "spot",
    "contract": False,
    "active": True,
    "precision": {"amount": "0.0001", "price": "0.01"},
    "limits": {"amount": {"min": "0.0001", "max": None}, "cost": {}, "price": {}},
    "info": {"orderTypes": ["LIMIT", "MARKET"]},
}
CREDENTIALS = Credentials({"apiKey": "planted-key", "secret": "planted-secret", "password": "planted-word"})


def venue(exchange: str) -> CcxtVenue:
    return CcxtVenue(CcxtOptions(exchange=exchange, symbols="BTC/USDT", sandbox=False), CREDENTIALS)


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize(
    ("method", "args"),
    [
        ("create_order", ("BTC/USDT", "limit", "buy", "0.001", "20000")),
        ("create_order", ("BTC/USDT", "market", "sell", "0.001", None)),
        ("fetch_order", ("", "BTC/USDT")),
        ("cancel_order", ("", "BTC/USDT")),
    ],
)
def test_requests_name_the_order(
    exchange: str, method: str, args: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = venue(exchange)
    ccxt, sent = opened._exchange, list[str]()
    ccxt.set_markets([ccxt.safe_market_structure(MARKET)])

    def fetch(url: str, method: str = "GET", headers: Any = None, body: Any = None) -> None:
        """Take what ccxt would send, and answer nothing."""
        sent.append(f"{url} {body}")
        raise opened._ccxt.RequestTimeout(f"{url} {headers} {body}")

    monkeypatch.setattr(ccxt, "fetch", fetch)
    name = client_id("order:" + "a" * 12 + ":" + "b" * 32)
    assert name is not None
    with pytest.raises(QmtlError) as caught:
        opened.ask(method, *args, clientOrderId=name)
    assert caught.value.code == "E_UNAVAILABLE"
    assert [name in each for each in sent] == [True]
    assert "planted" not in str(caught.value)


def test_without_the_package_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(QmtlError, match=r"pip install 'qmtl\[ccxt\]'"):
        venue("binance")
