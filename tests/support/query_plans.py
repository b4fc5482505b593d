"""The statements that shipped code sends to a database: who sends each, and how it is carried out."""

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlmodel import SQLModel

from activities.fence.postgres_statements import PostgresStatements
from activities.fence.sqlite_statements import SqliteStatements
from activities.storage.database import Database
from activities.storage.postgres import PostgresDatabase
from qmtl_sdk.nodes.syntax import parsed
from tests.support.many_rows import GROWING

ROOT = Path(__file__).parents[2]
_SHIPPED = tuple(str(ROOT / folder) for folder in ("activities", "api", "temporal"))

ROWS_READ = 2500
"""Rows that one statement may read: those of a page, or of a world with its strategies."""
STEPS = 38_000
"""Steps of SQLite's machine that one statement may take: 15 for each of these rows."""

_STEP = 100

_COMPREHENSION = re.compile(r"[.]<locals>[.]<(listcomp|setcomp|dictcomp|genexpr|lambda)>")

# The values of an IN, of which each call has another number.
_LIST = re.compile(r"\((?:\?|%\(\w+\)s(?:::\w+)?)(?:, (?:\?|%\(\w+\)s(?:::\w+)?))*\)")


@dataclass(frozen=True)
class Query:
    """A statement, its parameters, the function that sent it, and what that was for. (Any: the driver's.)"""

    statement: str
    parameters: Any
    site: str
    reader: str

    @property
    def reads(self) -> bool:
        """Whether it looks for rows. An insertion of rows that are all in its parameters does not."""
        only_inserts = re.match(r"\s*WITH\b", self.statement) and "SELECT" not in self.statement
        if only_inserts or re.match(r"\s*INSERT\b.* FROM unnest\(", self.statement, re.S):
            return False
        return bool(
            re.match(r"\s*(SELECT|UPDATE|DELETE|WITH)\b|\s*INSERT\b.*\bSELECT\b", self.statement, re.S | re.I)
        )

    def __str__(self) -> str:
        return f"{self.reader}: {self.site}: {' '.join(self.statement.split())[:300]}"


class Recorder:
    """Notes every statement of the process while its block runs."""

    def __init__(self) -> None:
        self.queries: list[Query] = []
        self._reader = ""

    @contextmanager
    def reading(self, reader: str) -> Iterator[list[Query]]:
        """Give what is noted inside the block, for `reader`."""
        first = len(self.queries)
        self._reader = reader
        found: list[Query] = []
        event.listen(Engine, "before_cursor_execute", self._note)
        try:
            yield found
        finally:
            event.remove(Engine, "before_cursor_execute", self._note)
            found += self.queries[first:]

    def _note(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        many = rest[-1]
        given = parameters[0] if many and isinstance(parameters, list) else parameters
        self.queries.append(Query(statement, given, _site(sys._getframe()), self._reader))


def _site(frame: FrameType | None) -> str:
    """Return the innermost function of shipped code on the stack."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(_SHIPPED):
            return site_name(Path(code.co_filename), code.co_qualname)
        frame = frame.f_back
    return "a test"


def site_name(path: Path, function: str) -> str:
    """Return the name of a function that sends statements; a comprehension counts as its function."""
    return f"{path.relative_to(ROOT)}:{_COMPREHENSION.sub('', function)}"


def unique(queries: Sequence[Query]) -> list[Query]:
    """Return each statement once, and only those that look for rows."""
    found: dict[tuple[str, str, str], Query] = {}
    for query in queries:
        if query.reads:
            lists = _LIST.sub("(…)", query.statement)
            found.setdefault((query.reader, query.site, lists), query)
    return list(found.values())


def faults(connection: Connection, query: Query) -> list[str]:
    """Return what is wrong with the plan of a statement, and with what it reads."""
    return (_sqlite_faults if connection.dialect.name == "sqlite" else _postgres_faults)(connection, query)


def rows_of(connection: Connection, query: Query) -> int:
    """Count the rows that a SELECT loads; none where it is something else."""
    if not query.statement.lstrip().upper().startswith("SELECT") or "FOR UPDATE" in query.statement:
        return 0
    return len(connection.exec_driver_sql(query.statement, query.parameters).fetchall())


def fence_reads(database: Database) -> list[Query]:
    """Return what the fence reads for an order, which goes to the driver itself."""
    keys = {name: ["w", "o1"] for name in ("worlds", "ids", "strategies", "sessions", "tokens")}
    if isinstance(database, PostgresDatabase):
        found, parameters = PostgresStatements._SELECTS, dict[str, Any](keys)
    else:
        found = SqliteStatements._SELECTS
        parameters = {name: json.dumps(values) for name, values in keys.items()}
    return [
        Query(text, parameters, f"activities/fence/snapshot.py:{name}", "an order")
        for name, text in found.items()
    ]


# SQLite


def _sqlite_faults(connection: Connection, query: Query) -> list[str]:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query.statement}", query.parameters)
    plan = [row[3] for row in rows]
    found = [
        line
        for line in plan
        if (match := re.match(r"(SCAN|SEARCH) (\w+)(?: AS \w+)?( USING .*)?", line))
        and _table(query.statement, match[2]) in GROWING
        and (match[1] == "SCAN" or "AUTOMATIC" in line)
        and not _bounded(line)
        and not (match[1] == "SCAN" and _is_list(query.statement) and "USING INDEX" in line)
    ]
    steps = _steps(connection, query)
    if steps > STEPS:
        found.append(f"takes {steps:,} steps: {'; '.join(plan)}")
    return found


def _is_list(statement: str) -> bool:
    """Whether a statement reads the first rows of an index: with no condition, it reads no others."""
    return "LIMIT" in statement and "WHERE" not in statement


def _table(statement: str, name: str) -> str:
    """Return the table that a plan means, which may name its alias."""
    match = re.search(rf'\b(\w+) AS "?{re.escape(name)}"?\b', statement)
    return match[1] if match and match[1] in SQLModel.metadata.tables else name


def _steps(connection: Connection, query: Query) -> int:
    """Count the steps of SQLite's machine; what the statement changes is undone."""
    driver: Any = connection.connection.driver_connection
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    point = connection.begin_nested()
    driver.set_progress_handler(step, _STEP)
    try:
        cursor = driver.execute(query.statement, query.parameters)
        cursor.fetchall()
    finally:
        driver.set_progress_handler(None, 0)
        point.rollback()
    return count * _STEP


# PostgreSQL


def _postgres_faults(connection: Connection, query: Query) -> list[str]:
    point = connection.begin_nested()
    try:
        answer = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {query.statement}", query.parameters
        ).scalar_one()
    finally:
        point.rollback()
    plan = (answer if isinstance(answer, list) else json.loads(answer))[0]["Plan"]
    found, read = list[str](), 0
    for node in _nodes(plan):
        kind, table = node["Node Type"], node.get("Relation Name", "")
        if "Scan" in kind and "Actual Rows" in node:
            kept = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            kept += node.get("Rows Removed by Index Recheck", 0)
            read += int(kept * node["Actual Loops"])
        if table not in GROWING:
            continue
        where = f"{kind} on {table} {node.get('Index Name', '')} {node.get('Filter', '')}".strip()
        if kind == "Seq Scan":
            found.append(f"{where}, of {node['Plan Rows']} rows")
    if read > ROWS_READ:
        found.append(f"reads {read:,} rows: {_outline(plan)}")
    return found


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from _nodes(below)


def _outline(plan: dict[str, Any]) -> str:
    return "; ".join(
        f"{node['Node Type']} {node.get('Index Name', node.get('Relation Name', ''))} "
        f"{node.get('Index Cond', '')} {node.get('Filter', '')}".strip()
        for node in _nodes(plan)
    )


def _bounded(plan: str) -> bool:
    """Whether a scan is of an index that holds few rows of its table, whatever the table grows to."""
    return any(re.search(rf"\b{name}\b", plan) for name in BOUNDED)


BOUNDED = {
    "outbox_waiting": "events that the relay has not published; it reads 500 at a time",
    "commit_log_waiting": "submissions that were not started; a recovery reads 10,000 at most",
    "session_expiring": "sessions that are open now",
    "session_open": "sessions that are open now",
    "session_open_newest": "sessions that are open now",
    "apply_running": "one apply of a world",
    "rebalancing_running": "the rebalancings that have not ended",
    "approval_unread": "approvals that no workflow has read yet",
    "activation_trading": "strategies that trade now",
}
"""Partial indexes that hold few rows however the table grows, with what they hold."""


def statement_sites(module: Path, calls: Callable[[str], bool]) -> Iterator[str]:
    """List the functions of a module that call a method for which `calls` is true."""

    def visit(node: ast.AST, names: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = names
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = (*names, child.name, "<locals>")
            elif isinstance(child, ast.ClassDef):
                inner = (*names, child.name)
            if (
                isinstance(child, ast.Call)
                and isinstance(child.func, ast.Attribute)
                and calls(child.func.attr)
            ):
                yield ".".join(names).removesuffix(".<locals>")
            yield from visit(child, inner)

    for function in dict.fromkeys(visit(parsed(module.read_text()), ())):
        yield site_name(module, function)
