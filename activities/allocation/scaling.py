"""What each position should become when the shares of worlds and strategies change.

A world's scale is after / before; where it had nothing before, 1 if it has something after, else 0. A
strategy with a share of its own has its own scale, the others that of their world; one that holds positions
of its world's share cannot begin at 0. Scales are exact fractions: with a rounded 2/3, a change of one whole
lot would be rounded down to none.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from fractions import Fraction

from activities.allocation.netting import Holding
from qmtl_sdk.contracts.allocations import AllocationChange
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instruments
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest, PositionSlice

Marks = Mapping[tuple[str, str], Decimal]
"""The price of each instrument, by venue and symbol."""


def scale(before: Decimal, after: Decimal) -> Fraction:
    """Return by how much the positions of a world or strategy are multiplied."""
    if before:
        return Fraction(after) / Fraction(before)
    return Fraction(1 if after else 0)


class Scales:
    """The scales of one world and of its strategies."""

    def __init__(self, change: AllocationChange) -> None:
        self.world = scale(change.before, change.after)
        self._own = {item.strategy_id: scale(item.before, item.after) for item in change.strategies}
        self._unknown = {
            item.strategy_id for item in change.strategies if change.before and item.after and not item.before
        }

    def of(self, strategy_id: str) -> Fraction:
        """Return the scale of a strategy's positions."""
        return self._own.get(strategy_id, self.world)

    def knows(self, strategy_id: str) -> bool:
        """Whether the positions of a strategy, if it holds any, have a scale.

        Not those of one that had 0 in a world that had something: they came of the world's share, and a scale
        of 1 would cancel its reduction.
        """
        return strategy_id not in self._unknown


def scaled_holdings(request: MultiWorldRebalanceRequest, instruments: Instruments) -> Iterator[Holding]:
    """Yield every position with the change that its scale asks for.

    Raises QmtlError: E_ALLOCATION_MISSING, E_INSTRUMENT_UNKNOWN.
    """
    scales = {change.world_id: Scales(change) for change in request.worlds}
    for position in request.positions:
        if position.world_id not in scales:
            raise QmtlError(
                "E_ALLOCATION_MISSING",
                f"world {position.world_id} has positions and no allocation",
                "name its share before and after, also where it does not change",
                world_id=position.world_id,
                strategy_id=position.strategy_id,
            )
        if position.quantity and not scales[position.world_id].knows(position.strategy_id):
            raise QmtlError(
                "E_ALLOCATION_MISSING",
                f"strategy {position.strategy_id} holds positions in world {position.world_id}, and its own "
                "share before is given as 0",
                "name the share that it had before, or leave it out: it is then scaled like its world",
                world_id=position.world_id,
                strategy_id=position.strategy_id,
            )
        factor = scales[position.world_id].of(position.strategy_id) - 1
        yield Holding(
            world_id=position.world_id,
            strategy_id=position.strategy_id,
            instrument=instruments.find(position.venue, position.symbol),
            quantity=position.quantity,
            gap=Fraction(position.quantity) * factor if factor else Fraction(),
        )


def marks_of(request: MultiWorldRebalanceRequest, instruments: Instruments) -> Marks:
    """Return the one mark of each instrument. Raises QmtlError: E_MARK_CONFLICT, E_INSTRUMENT_UNKNOWN."""
    marks: dict[tuple[str, str], Decimal] = {}
    for position in request.positions:
        _add_mark(marks, instruments, position)
    return marks


def add_mark(marks: dict[tuple[str, str], Decimal], key: tuple[str, str], mark: Decimal) -> None:
    """Add the mark of an instrument. Raises QmtlError (E_MARK_CONFLICT) where it has another one."""
    known = marks.setdefault(key, mark)
    if known != mark:
        venue, symbol = key
        raise QmtlError(
            "E_MARK_CONFLICT",
            f"{symbol}{f' at venue {venue!r}' if venue else ''} is marked at {known} and at {mark}",
            "send one mark for each instrument, all as of the same time",
            venue=venue,
            symbol=symbol,
            marks=[str(known), str(mark)],
        )


def _add_mark(
    marks: dict[tuple[str, str], Decimal], instruments: Instruments, position: PositionSlice
) -> None:
    instrument = instruments.find(position.venue, position.symbol)
    add_mark(marks, (instrument.venue, instrument.symbol), position.mark)
