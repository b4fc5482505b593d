"""Membership in a list that is one parameter, however long it is.

With a parameter for each value, as in `column.in_(values)`, a statement of some hundred values is another one
each time: the driver reads it anew, and PostgreSQL plans it anew.
"""

import json
from collections.abc import Collection
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
