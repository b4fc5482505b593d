"""Overlay: one instrument for each world, traded instead of its positions.

A world's net exposure, with what it has of the overlay instrument already, is scaled like the world; the
change of notional is traded in the overlay instrument. A hybrid plan trades the overlay at once, then the
positions, and then takes the overlay back.
"""

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from activities.allocation.netting import Holding, Trade, net
from activities.allocation.scaling import Marks, Scales, add_mark
from qmtl_sdk.contracts.allocations import AllocationChange
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instrument, Instruments
from qmtl_sdk.contracts.rebalance_plan import OVERLAY
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest, Overlay


class OverlayPlanner:
    """Finds the overlay instrument of each world, and what to trade of it."""

    def __init__(self, request: MultiWorldRebalanceRequest, instruments: Instruments) -> None:
        self._overlay = _required(request.overlay)
        if request.mode == "overlay":
            for change in request.worlds:
                _require_one_scale(change)
        self._factors = {change.world_id: Scales(change).world - 1 for change in request.worlds}
        self._instruments: dict[str, Instrument] = {}
        for world_id, symbol in sorted(self._overlay.instrument_by_world.items()):
            instrument = instruments.find(self._overlay.venue_by_symbol.get(symbol, ""), symbol)
            if instrument in self._instruments.values():
                raise _refused(f"{symbol} is the overlay instrument of two worlds", world_id)
            self._instruments[world_id] = instrument

    def trades(self, holdings: Iterable[Holding], marks: Marks) -> list[Trade]:
        """Return the trade of each world whose exposure is to change.

        Raises QmtlError: E_OVERLAY, E_MARK_CONFLICT, E_QUANTITY_RANGE.
        """
        held = list(holdings)
        exposure = dict.fromkeys(self._factors, Fraction())
        for item in held:
            mark = marks[item.instrument.venue, item.instrument.symbol]
            exposure[item.world_id] += Fraction(item.quantity) * Fraction(mark)
        wanted = {
            world_id: notional * self._factors[world_id]
            for world_id, notional in exposure.items()
            if notional * self._factors[world_id]
        }
        prices = dict(marks)
        overlays = [self._holding(world_id, notional, prices) for world_id, notional in wanted.items()]
        present = [
            replace(item, gap=Fraction())
            for item in held
            if item.world_id in wanted and item.instrument == self._instruments[item.world_id]
        ]
        return net([*present, *overlays], prices, "world", "overlay")

    def _holding(self, world_id: str, notional: Fraction, prices: dict[tuple[str, str], Decimal]) -> Holding:
        """Return what is wanted of a world's overlay instrument, and add its price to the prices."""
        if world_id not in self._instruments:
            raise _refused(f"world {world_id} has no overlay instrument", world_id)
        instrument = self._instruments[world_id]
        price = self._price(world_id, instrument)
        add_mark(prices, (instrument.venue, instrument.symbol), price)
        return Holding(world_id, OVERLAY, instrument, Decimal(0), notional / Fraction(price))

    def _price(self, world_id: str, instrument: Instrument) -> Decimal:
        """Return the price that is given under the name that the world uses, or the instrument's own."""
        name = self._overlay.instrument_by_world[world_id]
        for symbol in (name, instrument.symbol):
            if symbol in self._overlay.price_by_symbol:
                return self._overlay.price_by_symbol[symbol]
        raise _refused(f"{name}, the overlay instrument of {world_id}, has no price", world_id)


def _required(overlay: Overlay | None) -> Overlay:
    if overlay is None or not overlay.instrument_by_world or not overlay.price_by_symbol:
        raise _refused("an overlay needs an instrument for each world, and its price")
    return overlay


def _require_one_scale(change: AllocationChange) -> None:
    """Raise QmtlError (E_OVERLAY) where a strategy is to change otherwise than its world."""
    scales = Scales(change)
    for item in change.strategies:
        if scales.of(item.strategy_id) != scales.world:
            raise _refused(
                f"{item.strategy_id} has another scale than its world, which one overlay cannot give it",
                change.world_id,
            )


def _refused(message: str, world_id: str = "") -> QmtlError:
    return QmtlError(
        "E_OVERLAY",
        message,
        "give overlay.instrument_by_world one symbol for each world, and overlay.price_by_symbol its price",
        world_id=world_id,
    )
