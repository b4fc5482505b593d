# ruff: noqa: S608  the statements are made of constants
"""The statements of a transaction of the fence, on SQLite."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection

from activities.fence.log_line import ACCEPTED, LogLine, NewLine
from activities.fence.snapshot import FenceSnapshot, keys_of, lines_by_ref, selects, snapshot_of
from qmtl_sdk.contracts.orders import OrderRequest


class SqliteStatements:
    """SQLite: a statement costs a call, not a round trip, and the only writer needs no locks."""

    _SELECTS = selects("IN (SELECT value FROM json_each(:{}))")
    _INSERT = (
        f"INSERT INTO order_log ({', '.join(LogLine._fields)}) "
        f"VALUES ({', '.join('?' * len(LogLine._fields))}) ON CONFLICT DO NOTHING"
    )
    _OPEN = (
        "INSERT INTO open_order (order_id, world_id, strategy_id, execution_domain, symbol, quantity, price, "
        "origin, epoch, accepted_at, next_at, state, sent_at, acknowledged, filled_quantity, cancel_reason) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'accepted', '', 0, '', '')"
    )
    _COUNT = (
        "INSERT INTO order_count (world_id, kind, reason, orders) VALUES (?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET orders = orders + excluded.orders"
    )

    def read(
        self, connection: Connection, orders: Iterable[OrderRequest], tokens: set[str], wait: bool
    ) -> FenceSnapshot:
        keys = {name: json.dumps(values) for name, values in keys_of(orders, tokens).items()}
        driver = self._driver(connection)
        return snapshot_of(
            {name: driver.execute(statement, keys).fetchall() for name, statement in self._SELECTS.items()}
        )

    def earlier(self, connection: Connection, ids: Sequence[str]) -> dict[str, LogLine]:
        return lines_by_ref(
            self._driver(connection)
            .execute(self._SELECTS["earlier"], {"ids": json.dumps(list(ids))})
            .fetchall()
        )

    def write(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        driver = self._driver(connection)
        new = [given for given in lines if driver.execute(self._INSERT, given.line).rowcount]
        opened = [
            (line.ref, line.world_id, line.strategy_id, *about, line.epoch, line.at, line.at)
            for line, *about in new
            if line.kind == ACCEPTED
        ]
        if opened:
            driver.executemany(self._OPEN, opened)
        counts = Counter((line.world_id, line.kind, line.reason) for line, *_ in new)
        driver.executemany(self._COUNT, [(*key, count) for key, count in counts.items()])
        return {line.ref for line, *_ in new}

    def write_last(self, connection: Connection, lines: Sequence[NewLine]) -> set[str]:
        return self.write(connection, lines)

    @staticmethod
    def _driver(connection: Connection) -> sqlite3.Connection:
        driver = connection.connection.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        return driver
