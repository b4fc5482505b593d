# ruff: noqa: S608  the statements are made of the names of tables and columns
"""Rows written into PostgreSQL in one statement, with one parameter for each column.

A statement for each row takes client and server longer than the row itself. A column whose values are all
equal comes once, any other one as the literal of an array.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Table, TextClause, text
from sqlalchemy.dialects import postgresql

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]  # SQLAlchemy's


def insertion(
    table: Table, rows: Sequence[Mapping[str, Any]], replace: bool = False
) -> tuple[TextClause, dict[str, Any]]:
    """Build the statement that inserts rows in their order, and its parameters. (Any: values of columns.)

    All rows name the same columns. With `replace`, they replace rows with their primary keys; then no two
    have the same.
    """
    names, varying, parameters = list(rows[0]), list[str](), dict[str, Any]()
    for name in names:
        first, values = rows[0][name], [row[name] for row in rows]
        if values.count(first) == len(values):
            parameters[name] = first
        else:
            varying.append(name)
            parameters[name] = array_literal(values)
    types = _types(table)
    shown = (f'given."{name}"' if name in varying else f"CAST(:{name} AS {types[name]})" for name in names)
    listed = ", ".join(f'"{name}"' for name in names)
    statement = f"INSERT INTO {table.name} ({listed}) SELECT {', '.join(shown)}"
    if varying:
        arrays = ", ".join(f"CAST(:{name} AS {types[name]}[])" for name in varying)
        columns = ", ".join(f'"{name}"' for name in varying)
        statement += f" FROM unnest({arrays}) AS given({columns})"
    if replace:
        keys = [column.key for column in table.primary_key.columns]
        changed = ", ".join(f'"{name}" = excluded."{name}"' for name in names if name not in keys)
        statement += f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {changed}"
    return text(statement), parameters


def record_insertion(
    audits: Sequence[Mapping[str, Any]],
    heads: Sequence[Mapping[str, Any]],
    events: Sequence[Mapping[str, Any]],
) -> tuple[TextClause, dict[str, Any]]:
    """Build the statement that inserts the audit and outbox rows of changes, and the heads of their chains.

    Rows of one table name the same columns. (Any: values of columns.)
    """
    tables = {"audit": audits, "audit_head": heads, "outbox": events}
    parameters = {
        f"{table}_{number}_{name}": value
        for table, rows in tables.items()
        for number, row in enumerate(rows)
        for name, value in row.items()
    }
    shape = tuple((table, tuple(rows[0]), len(rows)) for table, rows in tables.items())
    return _record_statement(shape), parameters


@cache
def _record_statement(tables: tuple[tuple[str, tuple[str, ...], int], ...]) -> TextClause:
    """Build it once for the columns and numbers of rows of these three tables."""
    audit, head, outbox = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        + ", ".join(
            f"({', '.join(f':{table}_{number}_{name}' for name in columns)})" for number in range(count)
        )
        for table, columns, count in tables
    )
    replaced = "ON CONFLICT (chain) DO UPDATE SET number = excluded.number, hash = excluded.hash"
    return text(f"WITH audited AS ({audit}), linked AS ({head} {replaced}) {outbox}")


@cache
def _types(table: Table) -> dict[str, str]:
    """Return the types of a table's columns, as PostgreSQL writes them."""
    return {column.key: column.type.compile(dialect=_DIALECT) for column in table.columns}


def array_literal(values: Iterable[Any]) -> str:
    """Write values as the literal of an array. (Any: text, whole numbers and truth values.)"""
    return "{" + ",".join(map(_element, values)) + "}"


def _element(value: Any) -> str:
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return "NULL" if value is None else str(value)
