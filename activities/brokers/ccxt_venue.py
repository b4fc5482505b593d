"""An exchange as ccxt reaches it: one request at a time, each error of which says what became of it.

| what ccxt raises | what it means here |
|---|---|
| the network, a time-out, a limit of requests, maintenance | E_UNAVAILABLE: nobody knows whether it arrived |
| refused credentials | E_UNAVAILABLE, with a text for an operator: nothing more is sent meanwhile |
| an order, a symbol or a request that is not possible, too little money | `RefusedError`: it did nothing |
| an order that is not known | `UnknownOrderError` |
| anything else | E_EXTENSION: nobody knows whether it did something |

Errors of ccxt hold the address and headers of requests, so none is passed on: texts are made from their kind
and from what the venue answered, without addresses and credentials.
"""

import logging
import re
from collections.abc import Mapping
from decimal import Decimal, localcontext
from typing import Any

from activities.brokers.ccxt_options import CcxtOptions, Credentials
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.texts import printable

# Seconds for connecting and for each wait for an answer. Two requests of a call end within its limit of 5 s.
_TIMEOUT_S = 1.5

# How much longer the pause between two requests becomes when the venue says that there are too many: else a
# look-up of many orders would never come to its end. And how much longer than at first it becomes at most.
_SLOWER = 1.5
_SLOWEST = 10

# Signs of a venue's answer that an error repeats.
_SHOWN = 200

_ADDRESS = re.compile(r"https?://\S+")

# What an exchange has to be able to do.
_NEEDED = ("createOrder", "cancelOrder", "fetchOrder", "fetchOpenOrders", "fetchMyTrades", "fetchBalance")


class RefusedError(Exception):
    """The venue refused a request, which did nothing. Its text may be shown."""


class UnknownOrderError(Exception):
    """The venue does not know the order."""


class CcxtVenue:
    """Sends requests to one exchange, under its limit of requests.

    What it returns are ccxt's structures. (Any: JSON; amounts are texts, as the venue wrote them.)
    """

    def __init__(self, options: CcxtOptions, credentials: Credentials) -> None:
        self._ccxt = _import()
        self._redact = credentials.redact
        self._exchange = _open(self._ccxt, options, credentials)
        self._slowest = self._exchange.rateLimit * _SLOWEST
        lacking = [name for name in _NEEDED if not self._exchange.has.get(name)]
        if lacking:
            raise QmtlError(
                "E_CONFIG", f"{options.exchange} lacks {', '.join(lacking)}", "use another exchange"
            )

    @property
    def rate_limit_s(self) -> float:
        """Seconds between two requests, at present."""
        return float(self._exchange.rateLimit) / 1000

    def has(self, method: str) -> bool:
        """Whether the exchange has this method of ccxt, by its camel-cased name."""
        return self._exchange.has.get(method) is True

    def ask(self, method: str, *args: Any, **params: Any) -> Any:
        """Call a method of ccxt; `params` are its parameters of that name.

        Raises QmtlError (E_UNAVAILABLE, E_EXTENSION), RefusedError, UnknownOrderError.
        """
        try:
            # ccxt sets rounding and traps of the thread's context, which is ours.
            with localcontext():
                self._exchange.load_markets()
                return getattr(self._exchange, method)(*args, params=params)
        except Exception as error:
            if isinstance(error, (self._ccxt.RateLimitExceeded, self._ccxt.DDoSProtection)):
                self._exchange.rateLimit = min(self._exchange.rateLimit * _SLOWER, self._slowest)
            raise self._translated(error) from None

    def market(self, symbol: str) -> Mapping[str, Any]:
        """Return what the exchange says of a market. Raises like `ask`; RefusedError for an unknown one."""
        self.ask("load_markets")
        found = self._exchange.markets.get(symbol)
        if not found or not found.get("spot"):
            raise RefusedError(f"{self._exchange.id} has no spot market {symbol}")
        return found  # type: ignore[no-any-return]

    def amount(self, symbol: str, quantity: Decimal) -> str:
        """Return a quantity as the venue writes it. Raises RefusedError where it has no such quantity."""
        limits = self.market(symbol)["limits"]["amount"]
        step = self.market(symbol)["precision"]["amount"]
        try:
            written = self._written("amount_to_precision", symbol, quantity)
        except RefusedError:  # less than the smallest step
            written = "0"
        if Decimal(written) != quantity:
            raise RefusedError(f"the quantity {quantity:f} is none of {symbol}, whose step is {step}")
        for name, is_beyond in (("min", Decimal.__lt__), ("max", Decimal.__gt__)):
            limit = limits.get(name)
            if limit is not None and is_beyond(quantity, Decimal(str(limit))):
                raise RefusedError(f"the quantity {quantity:f} is beyond the {name}imum of {symbol}, {limit}")
        return written

    def limit_price(self, symbol: str, price: Decimal, side: str) -> str:
        """Return a price as the venue writes it: the nearest one that is no worse. Raises RefusedError."""
        tick = self.market(symbol)["precision"]["price"]
        if self._exchange.precisionMode != self._ccxt.TICK_SIZE or not tick:
            raise RefusedError(f"the prices of {symbol} have no tick; use order_type market")
        step = Decimal(str(tick))
        count = price / step
        whole = count.to_integral_value("ROUND_FLOOR" if side == "buy" else "ROUND_CEILING")
        if not whole:
            raise RefusedError(f"the price {price:f} of {symbol} is below its tick of {tick}")
        return f"{whole * step:f}"

    def _written(self, method: str, symbol: str, value: Decimal) -> str:
        try:
            with localcontext():
                return str(getattr(self._exchange, method)(symbol, f"{value:f}"))
        except Exception as error:
            raise self._translated(error) from None

    def _translated(self, error: Exception) -> Exception:
        ccxt, name = self._ccxt, self._exchange.id
        text = self._text(error)
        if isinstance(error, ccxt.OrderNotFound):
            return UnknownOrderError(text)
        if isinstance(error, ccxt.AuthenticationError):
            return QmtlError(
                "E_UNAVAILABLE",
                f"{name} refuses the credentials: {text}",
                "check the key, its permissions and its addresses; nothing is sent meanwhile",
            )
        if isinstance(error, ccxt.OperationFailed):
            return QmtlError("E_UNAVAILABLE", f"{name} cannot be reached: {text}")
        refusals = (
            ccxt.InvalidOrder,
            ccxt.InsufficientFunds,
            ccxt.BadRequest,
            ccxt.ArgumentsRequired,
            ccxt.NotSupported,
            ccxt.OperationRejected,
        )
        if isinstance(error, refusals):
            return RefusedError(text)
        return QmtlError("E_EXTENSION", f"{name} answered what cannot be read: {text}")

    def _text(self, error: Exception) -> str:
        said = _ADDRESS.sub("", self._redact(str(error))) if isinstance(error, self._ccxt.BaseError) else ""
        said = " ".join(said.removeprefix(self._exchange.id).split())
        return printable(f"{type(error).__name__}{': ' if said else ''}{said}", _SHOWN)


def _import() -> Any:
    """Import ccxt, when it is used: it takes 2 s and 80 MB. (Any: it has no complete types.)"""
    try:
        import ccxt
    except ImportError:
        raise QmtlError(
            "E_EXTENSION", "the broker ccxt needs the package ccxt", "pip install 'qmtl[ccxt]'"
        ) from None
    return ccxt


def _open(ccxt: Any, options: CcxtOptions, credentials: Credentials) -> Any:
    """Open an exchange. (Any: ccxt.)"""
    exchange = getattr(ccxt, options.exchange)(
        {
            **credentials.values,
            "enableRateLimit": True,
            "timeout": int(_TIMEOUT_S * 1000),
            "options": {
                "defaultType": "spot",
                "fetchMarkets": {"types": ["spot"]},
                "fetchMargins": False,
                "recvWindow": int(options.time_in_flight_s * 1000),
            },
        }
    )
    exchange.number = str  # as the venue wrote it
    exchange.has["fetchCurrencies"] = False  # nothing of it is needed
    exchange.logger.setLevel(logging.CRITICAL)  # its debug lines hold headers of requests
    if options.sandbox:
        exchange.set_sandbox_mode(True)
    if options.rate_limit_ms:
        exchange.rateLimit = options.rate_limit_ms
    if options.url:
        exchange.urls["api"] = _moved(exchange.urls["api"], options.url.rstrip("/"))
    return exchange


def _moved(urls: Any, to: str) -> Any:
    """Return addresses, which may be nested, at another host."""
    if isinstance(urls, Mapping):
        return {name: _moved(url, to) for name, url in urls.items()}
    return re.sub(r"https?://[^/]+", to, urls)
