"""The SQL statements that run inside a block of a test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

Statement = tuple[str, Any]
"""The text of a statement and its parameters. (Any: the driver's.)"""


@contextmanager
def statements() -> Iterator[list[Statement]]:
    """The statements of all databases; one of many rows counts once. (Any: the driver's objects.)"""
    found: list[Statement] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(Engine, "before_cursor_execute", note)
