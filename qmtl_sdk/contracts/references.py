"""References to a strategy of a world: its strategy_id, the beginning of its strategy_id, or its name.

Authors choose names freely, so a name may equal another strategy's id or its beginning. An id therefore
selects its strategy whatever others are named, and a reference that may mean several strategies selects none.
"""

from collections.abc import Iterable
from typing import Annotated, Protocol, TypeVar

from pydantic import AfterValidator

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.identity import STRATEGY_PREFIX
from qmtl_sdk.contracts.texts import PlainLine

MIN_PREFIX = 8
"""Fewest characters of a strategy_id that select a strategy: shorter ones match too easily."""

_LISTED = 5
"""Strategies that an error lists."""


class NamedStrategy(Protocol):
    """A strategy with its id and its name."""

    @property
    def strategy_id(self) -> str: ...

    @property
    def name(self) -> str: ...


StrategyT = TypeVar("StrategyT", bound=NamedStrategy)


def _require_no_id(name: str) -> str:
    if name.startswith(STRATEGY_PREFIX):
        raise ValueError(
            f"a name that begins with {STRATEGY_PREFIX!r} reads as a strategy_id: use another one"
        )
    return name


StrategyName = Annotated[PlainLine, AfterValidator(_require_no_id)]
"""The name of a strategy. One that reads as a strategy_id is refused."""


def matching_strategies(reference: str, known: Iterable[StrategyT]) -> list[StrategyT]:
    """Return the strategies that a reference may mean.

    A strategy_id means its strategy alone. Anything else means every strategy with this name, and every
    strategy whose id begins with it, where it has 8 or more characters.
    """
    strategies = {item.strategy_id: item for item in known}
    if reference in strategies:
        return [strategies[reference]]
    prefix = reference if len(reference) >= MIN_PREFIX else None
    return [
        item
        for item in strategies.values()
        if (reference and item.name == reference) or (prefix and item.strategy_id.startswith(prefix))
    ]


def one_strategy(reference: str, world_id: str, known: Iterable[StrategyT]) -> StrategyT:
    """Return the strategy of a world that a reference means.

    Raises QmtlError (E_STRATEGY_UNKNOWN) where none or several match.
    """
    strategies = list(known)
    found = matching_strategies(reference, strategies)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{item.name} {item.strategy_id}".strip() for item in found[:_LISTED])
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        what = f"names {len(found)} strategies of {world_id}: {listed}{more}"
    else:
        names = [item.name for item in strategies if item.name]
        what = f"is no strategy of {world_id}{nearest(reference, names)}"
    raise QmtlError(
        "E_STRATEGY_UNKNOWN",
        f"{reference[:80]!r} {what}",
        "give its whole strategy_id; qmtl world show W -o json lists those that were judged",
    )
