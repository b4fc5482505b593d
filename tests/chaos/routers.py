"""The order routers of a chaos run: take them away, give them back, and note when none worked.

When a router works is read from its heartbeats: on a busy machine, a start takes half a minute.
"""

import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

from sqlalchemy import text

from activities.storage.transactions import utc_now, utc_text
from tests.support.fence_model import Unrouted
from tests.support.machine import START_LIMIT_S, Machine, wait_for

NO_ROUTER_AFTER_S = 4.0
"""Seconds without a router after which live orders are refused in a chaos run."""


class Routers:
    """`unrouted` has every time without a router, which two threads may bring about one after the other."""

    def __init__(self, machine: Machine) -> None:
        self.unrouted: list[Unrouted] = []
        self._machine = machine
        self._lock = threading.Lock()

    def lose_all(self, meanwhile: Callable[[], None]) -> None:
        """Kill all, let something happen when live orders are refused for it, and start them again."""
        with self._lock:
            names = self._machine.all_of("router")
            self._kill(names)
            since = self._refused_from()
            time.sleep(NO_ROUTER_AFTER_S + 0.1)
            begun = utc_now()
            meanwhile()
            self._restart(names, since, begun)

    def kill(self, names: list[str]) -> None:
        """Kill routers and start them again at once. One that is left is ready to take over."""
        with self._lock:
            left = [name for name in self._machine.all_of("router") if name not in names]
            for name in left:
                self.await_ready(name)
            self._kill(names)
            begun = utc_text(datetime.now(UTC) + timedelta(seconds=NO_ROUTER_AFTER_S))
            self._restart(names, self._refused_from(), begun)

    def await_ready(self, name: str) -> None:
        """Wait until a router works, or stands by to do so."""
        self._await([name], ("running", "standby"))

    def _kill(self, names: list[str]) -> None:
        for name in names:
            self._machine.kill(name)

    def _restart(self, names: list[str], since: str, begun: str) -> None:
        """Start routers, and note the time until one of all works."""
        ended = utc_now()
        for name in names:
            self._machine.restart(name)
        self._await(self._machine.all_of("router"), ("running",))
        self.unrouted.append(Unrouted(begun, ended, since, utc_now()))

    def _refused_from(self) -> str:
        """From when live orders are refused, if no router works any more."""
        with closing(self._machine.database()) as database, database.read() as session:
            query = "SELECT max(worked_at) FROM process WHERE name = 'router' AND state <> 'standby'"
            worked_at = session.connection().execute(text(query)).scalar_one()
        return utc_text(datetime.fromisoformat(worked_at) + timedelta(seconds=NO_ROUTER_AFTER_S))

    def _await(self, names: list[str], states: tuple[str, ...]) -> None:
        """Wait until one of these routers has worked in one of these states, by its row."""
        pids = {self._machine.pids[name] for name in names}
        with closing(self._machine.database()) as database:

            def worked() -> bool:
                with database.read() as session:
                    query = "SELECT pid, state FROM process WHERE name = 'router' AND worked_at <> ''"
                    rows = session.connection().execute(text(query)).all()
                return any(row.pid in pids and row.state in states for row in rows)

            wait_for(worked, f"{' or '.join(names)} that works", START_LIMIT_S)
