"""Overlay: one instrument for each world, traded instead of its positions.

A world's net exposure, with what it has of the overlay instrument already, is scaled like its weight, and the
change of notional is traded in the overlay instrument. A hybrid plan trades the notional of its other orders,
as far as limits allow them, in the overlay instrument at once, then the positions, and then takes the overlay
back.
"""

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

from activities.allocation.netting import Holding, Trade, net
from activities.allocation.parts import parts_of
from activities.allocation.scaling import Marks, Scales, add_mark
from qmtl_sdk.contracts.allocations import AllocationChange
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instrument, Instruments
from qmtl_sdk.contracts.rebalance_plan import OVERLAY
from qmtl_sdk.contracts.rebalancing import Overlay

_COMPLETE = "give overlay.instrument_by_world a symbol for each world, and overlay.price_by_symbol its price"


class OverlayPlanner:
    """Finds the overlay instrument of each world, and what to trade of it."""

    def __init__(self, overlay: Overlay | None, instruments: Instruments) -> None:
        self._overlay = _required(overlay)
        self._instruments: dict[str, Instrument] = {}
        for world_id, symbol in sorted(self._overlay.instrument_by_world.items()):
            instrument = instruments.find(self._overlay.venue_by_symbol.get(symbol, ""), symbol)
            if instrument in self._instruments.values():
                raise _refused(
                    f"{symbol} is the overlay instrument of two worlds",
                    world_id,
                    "give each world an instrument of its own in overlay.instrument_by_world",
                )
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
        overlays = {(item.venue, item.symbol) for item in self._instruments.values()}
        for item in held:
            if item.quantity and (item.instrument.venue, item.instrument.symbol) in overlays:
                message = f"{item.instrument.symbol} is held, and is an overlay instrument of a hybrid plan"
                raise _refused(
                    message, item.world_id, "choose an instrument that nobody holds, or the mode overlay"
                )
        wanted: dict[str, Fraction] = {}
        for trade in trades:
            if trade.lots:
                for world_id, quantity in _ordered_for(trade).items():
                    notional = quantity * Fraction(trade.mark)
                    wanted[world_id] = wanted.get(world_id, Fraction()) + notional
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


def _ordered_for(trade: Trade) -> dict[str, Fraction]:
    """Return how much of an order is for each world. What worlds cross needs no order."""
    quantity = Fraction(trade.quantity)
    if trade.world_id:
        return {trade.world_id: quantity}
    received: dict[str, Fraction] = {}
    for part in parts_of(trade):
        received[part.world_id] = received.get(part.world_id, Fraction()) + Fraction(part.quantity)
    along = {world_id: part for world_id, part in received.items() if part * quantity > 0}
    share = quantity / sum(along.values(), Fraction())
    return {world_id: part * share for world_id, part in along.items()}


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
                "choose the mode scaling or hybrid, or change all shares of the world in one proportion",
            )
    return scales.world


def _refused(message: str, world_id: str = "", remedy: str = _COMPLETE) -> QmtlError:
    return QmtlError("E_OVERLAY", message, remedy, world_id=world_id)
