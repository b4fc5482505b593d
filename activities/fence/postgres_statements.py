# ruff: noqa: S608  the statements are made of constants
"""The statements of a transaction of the fence, on PostgreSQL."""

from collections.abc import Iterable, Sequence
from typing import Any

import psycopg
from psycopg.pq import DiagnosticField, ExecStatus
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
from qmtl_sdk.contracts.orders import OrderRequest

# Milliseconds that a queue waits for the lock of a fence, before another queue gets its thread.
_LOCK_TIMEOUT_MS = 200

# PostgreSQL's SQLSTATE lock_not_available.
_LOCK_NOT_AVAILABLE = b"55P03"

# The columns of a row of the order log, as PostgreSQL reads them from JSON.
_RECORD = ", ".join(f"{name} {'integer' if name == 'epoch' else 'text'}" for name in LogLine._fields)


class PostgresStatements:
    """PostgreSQL.

    First the locks, then one statement, which reads what was committed before they were granted.
    """

    _SELECTS = selects("= ANY(%({})s)")
    _READ = "SELECT " + ", ".join(
        f"(SELECT json_agg(found) FROM ({statement}) found)" for statement in _SELECTS.values()
    )
    _INSERT = f"""
        WITH given AS (
            SELECT * FROM json_to_recordset(%s)
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
        SELECT ref FROM line"""

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        keys = keys_of(orders, tokens)
        driver = self._driver(connection)
        self._lock(driver, keys["worlds"], wait)
        found = driver.execute(self._READ, keys).fetchone() or ()
        return snapshot_of(
            {
                name: [tuple(row.values()) for row in rows or ()]
                for name, rows in zip(self._SELECTS, found, strict=True)
            }
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return lines_by_ref(
            self._driver(connection).execute(self._SELECTS["earlier"], {"ids": list(ids)}).fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        given = Json([{**new.line._asdict(), **new._asdict(), "line": None} for new in lines])
        return {row[0] for row in self._driver(connection).execute(self._INSERT, (given,)).fetchall()}

    @staticmethod
    def _lock(driver: "psycopg.Connection[tuple[Any, ...]]", worlds: Sequence[str], wait: bool) -> None:
        """Begin the transaction and lock the worlds' fences in one round trip.

        The driver would make one for each statement.
        """
        keys = [lock_key(f"fence:{world_id}") for world_id in worlds]
        if wait:
            locks = [f"SELECT pg_advisory_xact_lock({key})" for key in keys]
            statements = [
                "BEGIN",
                f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}",
                *locks,
                f"SET LOCAL lock_timeout = '{milliseconds(LOCK_WAIT_S)}'",
            ]
        else:
            tries = ", ".join(f"pg_try_advisory_xact_lock({key})" for key in keys)
            statements = ["BEGIN", f"SELECT {tries}"]
        result = driver.pgconn.exec_(";".join(statements).encode())
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            if result.error_field(DiagnosticField.SQLSTATE) == _LOCK_NOT_AVAILABLE:
                raise FenceHeldError(worlds)
            raise psycopg.OperationalError(result.get_error_message())
        if not wait:
            held = [world for column, world in enumerate(worlds) if result.get_value(0, column) != b"t"]
            if held:
                raise FenceHeldError(held)

    @staticmethod
    def _driver(connection: Connection) -> "psycopg.Connection[tuple[Any, ...]]":
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver
