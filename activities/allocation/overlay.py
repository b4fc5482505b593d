"""Overlay: one instrument for each world, traded instead of its positions.

A world's net exposure, with what it has of the overlay instrument already, is scaled like its weight, and the
change of notional is traded in the overlay instrument. A hybrid plan trades the notional of its other orders
in the overlay instrument at once, then the positions, and then takes the overlay back.
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
from qmtl_sdk.contracts.rebalancing import Overlay


class OverlayPlanner:
    """Finds the overlay instrument of each world, and what to trade of it."""

    def __init__(self, overlay: Overlay | None, instruments: Instruments) -> None:
        self._overlay = _required(overlay)
        self._instruments: dict[str, Instrument] = {}
        for world_id, symbol in sorted(self._overlay.instrument_by_world.items()):
            instrument = instruments.find(self._overlay.venue_by_symbol.get(symbol, ""), symbol)
            if instrument in self._instruments.values():
                raise _refused(f"{symbol} is the overlay instrument of two worlds", world_id)
            self._instruments[world_id] = instrument

    def scaled(
        self, changes: Iterable[AllocationChange], holdings: Iterable[Holding], marks: Marks
    ) -> list[Trade]:
        """Return the trades that scale the net exposure of worlds, overlay included, like their weights.

        Raises QmtlError: E_OVERLAY, E_MARK_CONFLICT, E_QUANTITY_RANGE.
        """
        held = list(holdings)
        exposure: dict[str, Fraction] = {}
        for item in held:
            mark = marks[item.instrument.venue, item.instrument.symbol]
            notional = Fraction(item.quantity) * Fraction(mark)
            exposure[item.world_id] = exposure.get(item.world_id, Fraction()) + notional
        wanted = {
            change.world_id: exposure.get(change.world_id, Fraction()) * (_one_scale(change) - 1)
            for change in changes
        }
        return self._trades(wanted, held, marks)

    def ahead_of(self, trades: Iterable[Trade], holdings: Iterable[Holding], marks: Marks) -> list[Trade]:
        """Return the trades that stand in for others until these are filled.

        Raises QmtlError: E_OVERLAY, also where an overlay instrument is held: the others may trade it, too.
        """
        held = list(holdings)
        for item in held:
            if item.quantity and item.instrument in self._instruments.values():
                message = f"{item.instrument.symbol} is held, and is an overlay instrument of a hybrid plan"
                raise _refused(message, item.world_id)
        wanted: dict[str, Fraction] = {}
        for trade in trades:
            notional = Fraction(trade.quantity) * Fraction(trade.mark)
            wanted[trade.world_id] = wanted.get(trade.world_id, Fraction()) + notional
        return self._trades(wanted, held, marks)

    def _trades(self, wanted: dict[str, Fraction], held: list[Holding], marks: Marks) -> list[Trade]:
        """Return the trades that change the exposure of worlds by notionals."""
        prices = dict(marks)
        overlays = [
            self._holding(world_id, notional, prices) for world_id, notional in wanted.items() if notional
        ]
        traded = {(item.world_id, item.instrument) for item in overlays}
        present = [
            replace(item, gap=Fraction()) for item in held if (item.world_id, item.instrument) in traded
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


def taken_back(trade: Trade) -> Trade:
    """Return the trade that takes an overlay's back."""
    gap = -Fraction(trade.quantity)
    holding = Holding(trade.world_id, OVERLAY, trade.instrument, trade.after, gap)
    return replace(
        trade, phase="unwind", position=trade.after, gap=gap, lots=-trade.lots, holdings=(holding,)
    )


def _required(overlay: Overlay | None) -> Overlay:
    if overlay is None or not overlay.instrument_by_world or not overlay.price_by_symbol:
        raise _refused("an overlay needs an instrument for each world, and its price")
    return overlay


def _one_scale(change: AllocationChange) -> Fraction:
    """Return a world's scale. Raises QmtlError (E_OVERLAY) where a strategy has another one."""
    scales = Scales(change)
    for item in change.strategies:
        if scales.of(item.strategy_id) != scales.world:
            raise _refused(
                f"{item.strategy_id} has another scale than its world, which one overlay cannot give it",
                change.world_id,
            )
    return scales.world


def _refused(message: str, world_id: str = "") -> QmtlError:
    return QmtlError(
        "E_OVERLAY",
        message,
        "give overlay.instrument_by_world one symbol for each world, and overlay.price_by_symbol its price",
        world_id=world_id,
    )
