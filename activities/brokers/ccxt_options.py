"""The options of the broker `ccxt`, and the credentials that they name but never hold.

A credential is read from an environment variable or from a file, whose name is the option. It is shown by
nothing: not by these models, and not by an error.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.registry import Options

EXCHANGES = ("binance", "binanceus", "okx")
"""Those whose orders ccxt finds and cancels by our client order id, of 30 letters and digits."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The longest name of an instrument.
_LONGEST = 64

# What ccxt calls the credentials.
_CREDENTIALS = ("apiKey", "secret", "password")


class CcxtOptions(Model):
    """What `orders.broker_options` says of an exchange.

    `symbols` are those that are traded, with commas: `BTC/USDT`, or `BTC=BTC/USDT` where orders name it
    `BTC`. All are spot markets of one quote currency, which is the account's. `order_type` is `market`, or
    `limit` at the reference price of the order. `time_in_flight_s`: how long after a call an order may still
    arrive; the venue is told to refuse later ones. `url` is that of a stand-in on this machine.
    """

    exchange: str
    symbols: str = Field(min_length=1, max_length=8000)
    sandbox: bool = True
    order_type: Literal["market", "limit"] = "market"
    rate_limit_ms: int = Field(0, ge=0, le=2000, description="between requests; 0: as ccxt knows it")
    time_in_flight_s: float = Field(10.0, gt=0, le=60)
    api_key_env: str = ""
    secret_env: str = ""
    password_env: str = ""
    credentials_file: str = Field("", description="JSON with apiKey, secret and, where asked for, password")
    url: str = ""

    @model_validator(mode="after")
    def _is_possible(self) -> "CcxtOptions":
        if self.exchange not in EXCHANGES:
            hint = nearest(self.exchange, list(EXCHANGES))
            raise ValueError(f"exchange is none of {', '.join(EXCHANGES)}{hint}")
        if self.url and urlsplit(self.url).hostname not in _LOOPBACK:
            raise ValueError("url is not of this machine: it would be sent the credentials")
        self.markets  # noqa: B018
        return self

    @property
    def markets(self) -> dict[str, str]:
        """The names that ccxt has for symbols, by our names. Raises ValueError."""
        found = dict[str, str]()
        for item in filter(None, map(str.strip, self.symbols.split(","))):
            ours, _, theirs = item.partition("=")
            found[ours.strip()] = (theirs or ours).strip()
        bases = [name.partition("/")[0] for name in found.values()]
        quotes = {name.partition("/")[2] for name in found.values()}
        if len(quotes) != 1 or "" in quotes or len(set(bases)) != len(bases):
            raise ValueError(
                "symbols are markets such as BTC/USDT, each of another base and all of one quote"
            )
        if any(":" in quote for quote in quotes):
            raise ValueError("symbols are spot markets, without a colon: contracts are not traded")
        if any(not 0 < len(name) <= _LONGEST for name in found):
            raise ValueError(f"a symbol has 1 to {_LONGEST} signs")
        return found

    @property
    def currency(self) -> str:
        """The currency of the account."""
        return next(iter(self.markets.values())).partition("/")[2]


@dataclass(frozen=True)
class Credentials:
    """What signs requests, by ccxt's names."""

    values: dict[str, str] = field(repr=False)

    def redact(self, text: str) -> str:
        """Return a text without them, whoever put them there."""
        for value in sorted(self.values.values(), key=len, reverse=True):
            text = text.replace(value, "…") if value else text
        return text


def read_options(given: Options) -> CcxtOptions:
    """Check the options of a configuration. Raises QmtlError (E_CONFIG), which repeats no value."""
    try:
        return CcxtOptions.model_validate(given)
    except ValidationError as error:
        found = [
            _fault(".".join(map(str, item["loc"])), item["type"], item["msg"])
            for item in error.errors(include_input=False, include_url=False, include_context=False)
        ]
        raise QmtlError(
            "E_CONFIG",
            f"the options of the broker ccxt: {'; '.join(found)}",
            "see orders.broker_options in docs/orders.md; credentials are named, never written there",
        ) from None


def _fault(name: str, kind: str, said: str) -> str:
    if kind == "extra_forbidden":
        return f"there is no option {name!r}{nearest(name, list(CcxtOptions.model_fields))}"
    return f"{name or 'options'}: {said}"


def read_credentials(options: CcxtOptions) -> Credentials:
    """Read the credentials. Raises QmtlError (E_CONFIG), which names what is missing."""
    if options.credentials_file:
        return Credentials(_from_file(Path(options.credentials_file)))
    given = (options.api_key_env, options.secret_env, options.password_env)
    names = dict(zip(_CREDENTIALS, given, strict=True))
    values = {key: os.environ.get(name, "") for key, name in names.items() if name}
    missing = [names[key] for key, value in values.items() if not value]
    if missing or not {"apiKey", "secret"} <= values.keys():
        what = f"the environment has no {', '.join(missing)}" if missing else "no credentials are named"
        raise QmtlError(
            "E_CONFIG",
            f"the broker ccxt: {what}",
            "name them in orders.broker_options: api_key_env and secret_env, or credentials_file",
        )
    return Credentials(values)


def _from_file(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
        values = {key: found[key] for key in _CREDENTIALS if key in found}
        if not {"apiKey", "secret"} <= values.keys() or not all(map(_is_text, values.values())):
            raise ValueError
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not JSON with apiKey and secret"
        raise QmtlError(
            "E_CONFIG",
            f"the broker ccxt: its credentials_file {path} cannot be used: {reason}",
            'write {"apiKey": "…", "secret": "…"} there, readable for its owner alone',
        ) from None
    return values


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)
