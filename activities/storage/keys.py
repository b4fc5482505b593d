"""Conditions that select rows by keys of several columns."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Table, tuple_


def has_key(table: Table, names: Sequence[str], keys: Sequence[tuple[Any, ...]]) -> ColumnElement[bool]:
    """Return the condition that the columns of these names have one of these keys. (Any: their values.)

    With several keys SQLite searches no index for rows of columns and would read the whole table, so the
    first two columns are also asked for one by one.
    """
    condition: ColumnElement[bool] = tuple_(*(table.c[name] for name in names)).in_(keys)
    for place, name in enumerate(names[:2]):
        condition = table.c[name].in_(sorted({key[place] for key in keys})) & condition
    return condition
