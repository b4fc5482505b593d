"""Statements that insert rows, with what happens where a row with the same key is there."""

from functools import cache
from typing import Any

from sqlalchemy import Table


@cache
def insert_new_statement(insert: Any, table: Table) -> Any:
    """Build the statement of `insert_new_values` once: that takes longer than executing it.

    SQLAlchemy executes it for up to 1,000 rows at a time. (Any: the dialects share no type for it.)
    """
    return insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)


@cache
def upsert_statement(insert: Any, table: Table) -> Any:
    """Build the statement of `upsert`, also once."""
    statement = insert(table)
    keys = [column.key for column in table.primary_key.columns]
    return statement.on_conflict_do_update(
        index_elements=keys,
        set_={
            column.key: statement.excluded[column.key] for column in table.columns if column.key not in keys
        },
    )
