"""What a venue asks of orders in an instrument: lot, tick, smallest notional, time in force, costs.

The rules are given in three layers, global → venue → symbol; each layer overrides the values that it names.
"""

from collections.abc import Iterable
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from qmtl_sdk.contracts.amounts import Amount, Limit, plain
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.model import Model, sort_by
from qmtl_sdk.contracts.texts import PlainLine

MAX_VENUES = 100
"""Venues with rules of their own."""

MAX_SYMBOLS = 20_000
"""Symbols of a venue with rules of their own."""

MAX_ALIASES = 16
"""Other names of a symbol at its venue."""

Symbol = Annotated[PlainLine, Field(min_length=1, max_length=64)]
"""The name of an instrument."""

Venue = Annotated[PlainLine, Field(max_length=64)]
"""The account at a venue in which an instrument is held; empty where a world has one only."""

TimeInForce = Literal["GTC", "DAY", "IOC", "FOK"]
"""How long an order stays open."""

_Aliases = Annotated[tuple[Symbol, ...], Field(max_length=MAX_ALIASES), sort_by(lambda item: item)]
_Rate = Annotated[Decimal, Field(ge=0, le=1, decimal_places=12), AfterValidator(plain)]
_BasisPoints = Annotated[Decimal, Field(ge=0, le=10_000, decimal_places=4), AfterValidator(plain)]


class InstrumentRules(Model):
    """One layer of rules. None: as in the layer above.

    `lot` and `tick` are the steps of quantity and price. A change of less than `min_trade_notional` is not
    ordered. `cost_bps` estimates fee and slippage, in basis points of the notional. `margin_rate` is the
    share of its notional that a position locks; 1 where it is paid in full.
    """

    lot: Amount | None = None
    tick: Amount | None = None
    min_trade_notional: Limit | None = None
    time_in_force: TimeInForce | None = None
    supports_reduce_only: bool | None = None
    cost_bps: _BasisPoints | None = None
    margin_rate: _Rate | None = None


class SymbolRules(InstrumentRules):
    """The rules of one symbol of a venue, and the other names under which it is known there."""

    symbol: Symbol
    aliases: _Aliases = ()


_Symbols = Annotated[
    tuple[SymbolRules, ...], Field(max_length=MAX_SYMBOLS), sort_by(lambda item: item.symbol)
]


class VenueRules(InstrumentRules):
    """The rules of a venue, and of its symbols."""

    venue: Venue
    symbols: _Symbols = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        _require_unique((name for item in self.symbols for name in (item.symbol, *item.aliases)), "symbol")
        return self


_Venues = Annotated[tuple[VenueRules, ...], Field(max_length=MAX_VENUES), sort_by(lambda item: item.venue)]


class InstrumentConstraints(InstrumentRules):
    """The rules of all instruments: these are the global layer, and `venues` the layers below it."""

    venues: _Venues = ()

    @model_validator(mode="after")
    def _venues_are_unique(self) -> Self:
        _require_unique((item.venue for item in self.venues), "venue")
        return self


class Instrument(Model):
    """An instrument with its rules, from all layers."""

    venue: Venue
    symbol: Symbol
    lot: Amount
    tick: Amount | None = None
    min_trade_notional: Limit = Decimal(0)
    time_in_force: TimeInForce = "GTC"
    supports_reduce_only: bool = False
    cost_bps: _BasisPoints = Decimal(0)
    margin_rate: _Rate = Decimal(1)


class Instruments:
    """Finds the rules of an instrument, by its symbol or an alias of it."""

    def __init__(self, constraints: InstrumentConstraints) -> None:
        self._global = _values(constraints)
        self._venues = {venue.venue: _values(venue) for venue in constraints.venues}
        self._symbols = {
            (venue.venue, name): rules
            for venue in constraints.venues
            for rules in venue.symbols
            for name in (rules.symbol, *rules.aliases)
        }
        self._found: dict[tuple[str, str], Instrument] = {}

    def find(self, venue: str, symbol: str) -> Instrument:
        """Return the instrument that is called `symbol` at `venue`.

        Raises QmtlError: E_INSTRUMENT_UNKNOWN where no layer gives it a lot.
        """
        key = (venue, symbol)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= MAX_SYMBOLS:
                self._found.clear()  # whoever asks may name ever new symbols; another thread may read here
            found = self._found[key] = self._merged(venue, symbol)
        return found

    def symbol(self, venue: str, name: str) -> str:
        """Return the symbol of which `name` is an alias at `venue`, or the name itself."""
        rules = self._symbols.get((venue, name))
        return rules.symbol if rules else name

    def _merged(self, venue: str, symbol: str) -> Instrument:
        rules = self._symbols.get((venue, symbol))
        values = {**self._global, **self._venues.get(venue, {}), **(_values(rules) if rules else {})}
        if "lot" not in values:
            known = [name for at, name in self._symbols if at == venue]
            place = f"at venue {venue!r}" if venue else "without a venue: its position names none"
            remedy = "add the symbol to the instruments of its venue, or a lot for the whole venue"
            raise QmtlError(
                "E_INSTRUMENT_UNKNOWN",
                f"no lot is known for {symbol!r} {place}{nearest(symbol, known)}",
                remedy if venue else "name the venue (of an overlay: in venue_by_symbol), or a lot for all",
                venue=venue,
                symbol=symbol,
            )
        return Instrument(venue=venue, symbol=self.symbol(venue, symbol), **values)


def _values(rules: InstrumentRules) -> dict[str, object]:
    """Return the values that a layer names."""
    names = InstrumentRules.model_fields
    return {name: value for name in names if (value := getattr(rules, name)) is not None}


def _require_unique(names: Iterable[str], what: str) -> None:
    """Raise ValueError where a name occurs twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two entries are for the {what} {name!r}; a symbol's aliases are names as well")
        seen.add(name)
