"""Membership in a list that is one parameter, however long it is.

With a parameter for each value, as in `column.in_(values)`, a statement of some hundred values is another one
each time: the driver reads it anew, and PostgreSQL plans it anew.
"""

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Dialect, Text, TypeDecorator, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from activities.storage.postgres_rows import array_literal


class _Values(TypeDecorator[Collection[str]]):
    """Texts in one parameter: the literal of an array in PostgreSQL, a JSON list in SQLite."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[str] | None, dialect: Dialect) -> str:
        found = list(value or ())
        return array_literal(found) if dialect.name == "postgresql" else json.dumps(found)


class among(FunctionElement[Any]):  # noqa: N801  it is written like a function
    """Whether a column of texts has one of the values."""

    # Of a Boolean, SQLAlchemy would compare the value with 1 in SQLite, which would then use no index.
    type = NullType()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], values: Collection[str]) -> None:
        super().__init__(column, bindparam(None, values, type_=_Values(), unique=True))


@compiles(among, "postgresql")
def _among_array(element: among, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, values = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"{column} IN (SELECT unnest(CAST({values} AS VARCHAR[])))"


@compiles(among, "sqlite")
def _among_json(element: among, compiler: SQLCompiler, **kwargs: Any) -> str:
    column, values = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"{column} IN (SELECT value FROM json_each({values}))"  # noqa: S608  made of columns


class each_of(FunctionElement[Any]):  # noqa: N801  the same
    """The values as rows: `each_of(values).table_valued("value", name="value")` has the column `value`."""

    name = "each_of"
    inherit_cache = True

    def __init__(self, values: Collection[str]) -> None:
        super().__init__(bindparam(None, values, type_=_Values(), unique=True))


@compiles(each_of, "postgresql")
def _each_of_array(element: each_of, compiler: SQLCompiler, **kwargs: Any) -> str:
    (values,) = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"unnest(CAST({values} AS VARCHAR[]))"


@compiles(each_of, "sqlite")
def _each_of_json(element: each_of, compiler: SQLCompiler, **kwargs: Any) -> str:
    (values,) = (compiler.process(each, **kwargs) for each in element.clauses)
    return f"json_each({values})"


class _Keys(TypeDecorator[Collection[tuple[str, ...]]]):
    """Keys of several texts in one parameter, a JSON list of lists."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Collection[tuple[str, ...]] | None, dialect: Dialect) -> str:
        return json.dumps([list(key) for key in value or ()])


class among_keys(FunctionElement[Any]):  # noqa: N801  the same
    """Whether columns of texts have one of the keys, each of which has a text for each column."""

    type = NullType()
    inherit_cache = True

    def __init__(self, columns: Sequence[ColumnElement[Any]], keys: Collection[tuple[str, ...]]) -> None:
        super().__init__(*columns, bindparam(None, keys, type_=_Keys(), unique=True))


@compiles(among_keys, "postgresql")
def _keys_in_postgres(element: among_keys, compiler: SQLCompiler, **kwargs: Any) -> str:
    *columns, keys = (compiler.process(each, **kwargs) for each in element.clauses)
    shown = ", ".join(f"key ->> {number}" for number in range(len(columns)))
    listed = f"json_array_elements(CAST({keys} AS JSON)) AS keys(key)"
    return f"({', '.join(columns)}) IN (SELECT {shown} FROM {listed})"  # noqa: S608  made of columns


@compiles(among_keys, "sqlite")
def _keys_in_sqlite(element: among_keys, compiler: SQLCompiler, **kwargs: Any) -> str:
    *columns, keys = (compiler.process(each, **kwargs) for each in element.clauses)
    shown = ", ".join(f"value ->> {number}" for number in range(len(columns)))
    return f"({', '.join(columns)}) IN (SELECT {shown} FROM json_each({keys}))"  # noqa: S608  the same
