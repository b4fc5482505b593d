# ruff: noqa: S608  the statements are made of constants
"""The statements of a transaction of the fence, on PostgreSQL.

Orders pay for each round trip, and for what the driver does about each. So a transaction that only accepts or
refuses orders is two texts of several statements: the first locks the fences and reads, the second writes and
commits. Their long statements are prepared once for each connection.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import DiagnosticField, Escaping, ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult
from psycopg.types.json import Json
from sqlalchemy import Connection

from activities.fence.log_line import LogLine, NewLine
from activities.fence.snapshot import (
    FenceHeldError,
    FenceSnapshot,
    keys_of,
    lines_by_ref,
    selects,
    snapshot_of,
)
from activities.storage.postgres import LOCK_WAIT_S, lock_key, milliseconds
from activities.storage.postgres_rows import array_literal
from qmtl_sdk.contracts.orders import OrderRequest

# Milliseconds that a queue waits for the lock of a fence, before another queue gets its thread.
_LOCK_TIMEOUT_MS = 200

# PostgreSQL's SQLSTATEs lock_not_available and invalid_sql_statement_name.
_LOCK_NOT_AVAILABLE = b"55P03"
_NOT_PREPARED = b"26000"

# The columns of a row of the order log, as PostgreSQL reads them from JSON.
_RECORD = ", ".join(f"{name} {'integer' if name == 'epoch' else 'text'}" for name in LogLine._fields)

# Settings of a connection: whether a transaction got the lock of each fence, and how many lines it wrote.
_LOCKED = "qmtl.locked"
_WRITTEN = "qmtl.written"


class PostgresStatements:
    """PostgreSQL.

    First the locks, then one statement, which reads what was committed before they were granted.
    """

    _SELECTS = selects("= ANY(%({})s)")
    _KEYS = ("worlds", "ids", "strategies", "sessions", "tokens")
    _READ = (
        "SELECT "
        + ", ".join(
            f"(SELECT json_agg(found) FROM ({statement}) found)"
            for statement in selects("= ANY({{{}}})").values()
        )
        + f", current_setting('{_LOCKED}', true)"
    )
    _INSERT = f"""
        WITH given AS (
            SELECT * FROM json_to_recordset({{given}})
            AS given({_RECORD}, domain text, symbol text, quantity text, price text, origin text)
        ), line AS (
            INSERT INTO order_log ({", ".join(LogLine._fields)})
            SELECT {", ".join(LogLine._fields)} FROM given
            ON CONFLICT DO NOTHING RETURNING ref, kind, world_id, strategy_id, at, epoch, reason
        ), opened AS (
            INSERT INTO open_order (order_id, world_id, strategy_id, execution_domain, symbol, quantity,
                                    price, origin, epoch, accepted_at, next_at, state, sent_at, acknowledged,
                                    filled_quantity, cancel_reason)
            SELECT ref, line.world_id, line.strategy_id, domain, symbol, quantity, price, origin, line.epoch,
                   line.at, line.at, 'accepted', '', false, '', ''
            FROM line JOIN given USING (ref) WHERE line.kind = 'accepted'
        ), counted AS (
            INSERT INTO order_count (world_id, kind, reason, orders)
            SELECT world_id, kind, reason, count(*) FROM line GROUP BY world_id, kind, reason
            ORDER BY world_id, kind, reason
            ON CONFLICT (world_id, kind, reason)
            DO UPDATE SET orders = order_count.orders + excluded.orders
        )
        SELECT {{result}} FROM line"""
    _PREPARED = (
        "PREPARE fence_read(text[], text[], text[], text[], text[]) AS "
        + _READ.format(worlds="$1", ids="$2", strategies="$3", sessions="$4", tokens="$5"),
        "PREPARE fence_write(json) AS "
        + _INSERT.format(given="$1", result=f"set_config('{_WRITTEN}', count(*)::text, false)"),
    )

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        keys, driver = keys_of(orders, tokens), self._driver(connection)
        worlds = keys["worlds"]
        arrays = {name: f"{_quoted(driver, array_literal(keys[name]))}::text[]" for name in self._KEYS}
        # A transaction that has begun holds locks and what it has checked: nothing here may roll it back.
        begins = driver.info.transaction_status == TransactionStatus.IDLE
        if begins:
            read = f"EXECUTE fence_read({', '.join(arrays.values())})"
            statements = ["BEGIN", *_locks(worlds, wait), read]
        else:
            statements = [*_locks(worlds, wait), self._READ.format(**arrays)]
        result = _result(driver, statements)
        if (
            begins and result.error_field(DiagnosticField.SQLSTATE) == _NOT_PREPARED
        ):  # the first one on this connection
            _checked(_result(driver, ["ROLLBACK", *self._PREPARED]))
            result = _result(driver, statements)
        if result.error_field(DiagnosticField.SQLSTATE) == _LOCK_NOT_AVAILABLE:
            raise FenceHeldError(worlds)
        *found, locked = _row(_checked(result))
        if not wait and (held := [name for name, got in zip(worlds, locked, strict=True) if got != "t"]):
            if begins:  # by a rollback of its own the driver would forget all that it has prepared
                _checked(_result(driver, ["ROLLBACK"]))
            raise FenceHeldError(held)
        return snapshot_of(
            {
                name: [tuple(row.values()) for row in json.loads(rows or "[]")]
                for name, rows in zip(self._SELECTS, found, strict=True)
            }
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return lines_by_ref(
            self._driver(connection).execute(self._SELECTS["earlier"], {"ids": list(ids)}).fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        statement = self._INSERT.format(given="%s", result="ref")
        given = Json(_rows(lines))
        return {row[0] for row in self._driver(connection).execute(statement, (given,)).fetchall()}

    def write_last(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        driver = self._driver(connection)
        given = _quoted(driver, json.dumps(_rows(lines)))
        statements = [f"EXECUTE fence_write({given})", "COMMIT", f"SHOW {_WRITTEN}"]
        (count,) = _row(_checked(_result(driver, statements)))
        if int(count) == len(lines):
            return {new.line.ref for new in lines}
        earlier = self.earlier(connection, [new.line.ref for new in lines])
        return {new.line.ref for new in lines if earlier[new.line.ref] == new.line}

    @staticmethod
    def _driver(connection: Connection) -> "psycopg.Connection[tuple[Any, ...]]":
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver


def _rows(lines: Sequence[NewLine]) -> list[dict[str, object]]:
    """Return lines as `_INSERT` takes them."""
    return [{**new.line._asdict(), **new._asdict(), "line": None} for new in lines]


def _locks(worlds: Sequence[str], wait: bool) -> list[str]:
    """Return the statements that lock the worlds' fences. Without `wait` they set `_LOCKED`, t or f each."""
    keys = [lock_key(f"fence:{world_id}") for world_id in worlds]
    if wait:
        return [
            f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}",
            *(f"SELECT pg_advisory_xact_lock({key})" for key in keys),
            f"SET LOCAL lock_timeout = '{milliseconds(LOCK_WAIT_S)}'",
        ]
    tries = ", ".join(f"pg_try_advisory_xact_lock({key})" for key in keys)
    return [f"SELECT set_config('{_LOCKED}', concat({tries}), true)"]


def _result(driver: "psycopg.Connection[Any]", statements: Sequence[str]) -> PGresult:
    """Run statements in one round trip. Returns the result of the last one, or of the first that fails."""
    return driver.pgconn.exec_(";".join(statements).encode())


def _checked(result: PGresult) -> PGresult:
    """Return a result. Raises psycopg.Error, as the driver does for a statement of its own."""
    if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        raise error_from_result(result)
    return result


def _row(result: PGresult) -> list[str]:
    """Return the values of a result's only row; empty where one is NULL."""
    return [(result.get_value(0, column) or b"").decode() for column in range(result.nfields)]


def _quoted(driver: "psycopg.Connection[Any]", text: str) -> str:
    """Return a text as a literal. Raises psycopg.DataError where the database cannot hold it."""
    if "\0" in text:  # a statement would end there
        raise psycopg.DataError("a text with a zero byte")
    return bytes(Escaping(driver.pgconn).escape_literal(text.encode())).decode()
