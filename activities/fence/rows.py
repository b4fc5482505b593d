# ruff: noqa: S608  the texts are made of constants
"""What one transaction of the fence reads and writes: in plain SQL, because every order pays for it, and in as few round trips as the database allows.

The words of the partial index of `order_log` stand in the text as they stand in the index: with parameters in their place neither database would use it.
"""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import psycopg
from psycopg.pq import ExecStatus
from psycopg.types.json import Json
from sqlalchemy import Connection

from activities.fence.rules import Activation, Session, World
from activities.storage.database import Database
from activities.storage.postgres import PostgresDatabase, lock_key
from qmtl_sdk.contracts.orders import Order

ACCEPTED, REFUSED, FILLED = "accepted", "refused", "filled"
_WORLD = tuple(World.__dataclass_fields__)


class LogLine(NamedTuple):
    """An order with its verdict, as the log has it. `epoch` is the order's."""

    at: str
    world_id: str
    kind: str
    ref: str
    epoch: int
    strategy_id: str
    reason: str
    body: str


@dataclass(frozen=True)
class FenceSnapshot:
    """Worlds by id, what was said of orders before by order id, activations by world and strategy, sessions by id."""

    worlds: dict[str, World]
    earlier: dict[str, LogLine]
    activations: dict[tuple[str, str], Activation]
    sessions: dict[str, Session]


class OrderRows(Protocol):
    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        """What concerns these orders, under their worlds' fences, which are held from here to the commit: alone for `alone`, else together with other orders."""

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        """What was said of these orders before."""

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        """Write down new orders, the accepted ones as open too. Which of them were new: of an id that is there already the earlier line stands."""


def order_rows(database: Database) -> OrderRows:
    return _PostgresRows() if isinstance(database, PostgresDatabase) else _SqliteRows()


def _selects(among: str) -> dict[str, str]:
    """The text of each look, `among` being the database's word for membership in a list."""
    return {
        "worlds": f"SELECT world_id, {', '.join(_WORLD)} FROM fence WHERE world_id {among.format('worlds')}",
        "earlier": f"SELECT {', '.join(LogLine._fields)} FROM order_log WHERE ref {among.format('ids')} AND order_log.kind IN ('accepted', 'refused')",
        "activations": f"SELECT world_id, strategy_id, active, mode FROM activation WHERE world_id {among.format('worlds')} AND strategy_id {among.format('strategies')}",
        "sessions": f"SELECT session_id, world_id, strategy_id, execution_domain, expires_at, ended_at IS NOT NULL FROM session WHERE session_id {among.format('sessions')}",
    }


def _asked(orders: Iterable[Order]) -> dict[str, list[str]]:
    of = list(orders)
    found = {
        "worlds": {o.world_id for o in of},
        "ids": {o.order_id for o in of},
        "strategies": {o.strategy_id for o in of},
        "sessions": {o.session_id for o in of},
    }
    return {name: sorted(values) for name, values in found.items()}


def _seen(rows: dict[str, list[tuple[Any, ...]]]) -> FenceSnapshot:
    """(Any: what a database's driver gives.)"""
    return FenceSnapshot(
        {row[0]: World(*row[1:]) for row in rows["worlds"]},
        _lines(rows["earlier"]),
        {(row[0], row[1]): Activation(bool(row[2]), row[3]) for row in rows["activations"]},
        {row[0]: Session(row[1], row[2], row[3], row[4], bool(row[5])) for row in rows["sessions"]},
    )


def _lines(rows: list[tuple[Any, ...]]) -> dict[str, LogLine]:
    return {line.ref: line for line in map(LogLine._make, rows)}


class _SqliteRows:
    """The file is at hand: a round trip is a call. The one writer needs no locks."""

    _SELECTS = _selects("IN (SELECT value FROM json_each(:{}))")
    _KEEP = f"INSERT INTO order_log ({', '.join(LogLine._fields)}) VALUES ({', '.join('?' * len(LogLine._fields))}) ON CONFLICT DO NOTHING"
    _OPEN = "INSERT INTO open_order (order_id, world_id, accepted_at) VALUES (?, ?, ?)"

    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        asked = {name: json.dumps(values) for name, values in _asked(orders).items()}
        driver = self._driver(connection)
        return _seen(
            {name: driver.execute(statement, asked).fetchall() for name, statement in self._SELECTS.items()}
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return _lines(
            self._driver(connection)
            .execute(self._SELECTS["earlier"], {"ids": json.dumps(list(ids))})
            .fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        driver = self._driver(connection)
        new = [line for line in lines if driver.execute(self._KEEP, line).rowcount]
        driver.executemany(
            self._OPEN, [(line.ref, line.world_id, line.at) for line in new if line.kind == ACCEPTED]
        )
        return {line.ref for line in new}

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver


class _PostgresRows:
    """A look is the locks and, after them, one statement, which sees what was committed before they were had."""

    _SELECTS = _selects("= ANY(%({})s)")
    _LOOK = "SELECT " + ", ".join(
        f"(SELECT json_agg(found) FROM ({statement}) found)" for statement in _SELECTS.values()
    )
    _KEEP = f"""
        WITH line AS (
            INSERT INTO order_log ({", ".join(LogLine._fields)})
            SELECT * FROM json_to_recordset(%s) AS given({", ".join(f"{name} {'integer' if name == 'epoch' else 'text'}" for name in LogLine._fields)})
            ON CONFLICT DO NOTHING RETURNING ref, kind, world_id, at
        ), opened AS (
            INSERT INTO open_order (order_id, world_id, accepted_at) SELECT ref, world_id, at FROM line WHERE kind = 'accepted'
        )
        SELECT ref FROM line"""

    def read(self, connection: Connection, orders: Iterable[Order], alone: set[str]) -> FenceSnapshot:
        asked = _asked(orders)
        driver = self._driver(connection)
        locks = [
            f"SELECT pg_advisory_xact_lock{'' if world_id in alone else '_shared'}({lock_key(f'fence:{world_id}')})"
            for world_id in asked["worlds"]
        ]
        self._begin(driver, locks)
        found = driver.execute(self._LOOK, asked).fetchone() or ()
        return _seen(
            {
                name: [tuple(row.values()) for row in rows or ()]
                for name, rows in zip(self._SELECTS, found, strict=True)
            }
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return _lines(
            self._driver(connection).execute(self._SELECTS["earlier"], {"ids": list(ids)}).fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[LogLine]) -> set[str]:
        given = Json([line._asdict() for line in lines])
        return {row[0] for row in self._driver(connection).execute(self._KEEP, (given,)).fetchall()}

    @staticmethod
    def _begin(driver: "psycopg.Connection[tuple[Any, ...]]", first: Sequence[str]) -> None:
        """Open the transaction with these statements, in one round trip and past the driver, which would make one of each."""
        result = driver.pgconn.exec_(";".join(["BEGIN", *first]).encode())
        if result.status not in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            raise psycopg.OperationalError(result.get_error_message())

    @staticmethod
    def _driver(connection: Connection) -> "psycopg.Connection[tuple[Any, ...]]":
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        return driver
