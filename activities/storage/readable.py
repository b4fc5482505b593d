"""Read lists of which one row cannot be read."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import structlog

Row = TypeVar("Row")
Item = TypeVar("Item")

_log = structlog.get_logger()


def readable(rows: Iterable[Row], convert: Callable[[Row], Item]) -> list[Item]:
    """Convert rows; log and leave out those whose values no model holds, so that the others are listed.

    Not for lists on which someone acts as a whole: `qmtl world halt --all` must not miss a world.
    """
    found: list[Item] = []
    for row in rows:
        try:
            found.append(convert(row))
        except ValueError as error:  # pydantic's ValidationError is one
            _log.error(
                "a row cannot be read and is left out of a list", kind=type(row).__name__, why=str(error)
            )
    return found
