"""Halt worlds in the store itself, where no Gateway answers.

Whoever may write the database may halt: the files' owner, or who holds the DSN with its password.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path

from activities.fence.halt_all import halt_all
from activities.fence.store import SqlFenceStore
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.settings import Settings, local_user, settings
from activities.storage.dsn import sqlite_file
from activities.storage.opening import open_database
from activities.storage.turnstile import WriterWatch
from api.cli.early_halt import Halted
from qmtl_sdk.contracts.access import principal_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import printable

# Seconds to wait for the fence of one world: by then the database has ended a transaction that hangs.
_WAIT_S = 45.0

# Seconds in which worlds whose fence is held are tried again, where all are halted.
_ALL_WITHIN_S = 10.0

# Seconds for which a process that keeps all writers out of SQLite may be stopped. Then it is ended, as
# PostgreSQL ends such a transaction.
_STOPPED_FOR_S = 3.0

# Seconds between two looks at who keeps writers out.
_LOOK_EVERY_S = 0.1


def halt_in_store(
    world: str | None, strategy: str | None, as_name: str | None, reason: str, wait_s: float = _WAIT_S
) -> Halted:
    """Halt a world, a strategy of it, or all worlds.

    The audit trail names the user of this machine. `wait_s`: seconds to wait for a fence that another
    transaction holds, and for SQLite's writer.

    Raises QmtlError: E_UNAVAILABLE where the store can't be reached from here, E_STRATEGY_UNKNOWN,
    E_HALT_INCOMPLETE.
    """
    if as_name is not None:
        raise QmtlError(
            "E_UNAVAILABLE",
            f"no Gateway answers, and only a Gateway can check {as_name}'s token",
            "halt without --as: the audit trail then names the user of this machine",
        )
    reason = printable(reason, MAX_REASON)  # before the command has loaded, nothing else has cleaned it
    config, user = settings(), principal_of(local_user())
    require_store(config)
    halt = partial(_halted, config.database_dsn, world, strategy, user, reason, wait_s)
    file = sqlite_file(config.database_dsn)
    return _watched(file, wait_s, halt) if file else Halted(halt(), in_store=True)


def _halted(
    dsn: str, world: str | None, strategy: str | None, user: str, reason: str, wait_s: float
) -> list[str]:
    database = open_database(dsn)
    try:
        fence = SqlFenceStore(database)
        if world is not None and strategy is not None:
            SqlStrategyHalts(database).halt(world, strategy, user, reason, wait_s)
            return [world]
        if world is not None:
            fence.halt(world, user, reason, wait_s)
            return [world]
        worlds = fence.world_ids()
        halt_all(database, worlds, user, reason, min(wait_s, _ALL_WITHIN_S))
        return worlds
    finally:
        database.close()


def _watched(path: Path, within_s: float, halt: Callable[[], list[str]]) -> Halted:
    """Halt in a thread, and end what is stopped and keeps all writers out meanwhile.

    Raises QmtlError: E_UNAVAILABLE where the thread still waits after `within_s`.
    """
    done: Future[list[str]] = Future()

    def run() -> None:
        try:
            done.set_result(halt())
        except BaseException as error:  # whatever it is, the caller gets it
            done.set_exception(error)

    threading.Thread(target=run, name="halt-in-store", daemon=True).start()
    watch, ended, until = WriterWatch(path, _STOPPED_FOR_S), list[int](), time.monotonic() + within_s
    while not done.done():
        wait([done], _LOOK_EVERY_S)
        ended += watch.look()
        if not done.done() and time.monotonic() >= until:
            pids = ", ".join(str(process.pid) for process in watch.holders()) or "unknown to this account"
            raise QmtlError(
                "E_UNAVAILABLE",
                f"another process keeps all writers out of {path} (pid: {pids})",
                "no order passes meanwhile; end it, or what else has the file open, then repeat the command",
            )
    return Halted(done.result(), True, tuple(ended))


def require_store(config: Settings) -> None:
    """Refuse a database that is not the Gateway's. Raises QmtlError (E_UNAVAILABLE)."""
    if config.gateway.url and not config.gateway.database_dsn:
        raise QmtlError(
            "E_UNAVAILABLE",
            f"the Gateway at {config.gateway.url} does not answer, and its database is not configured here",
            "halt on a machine that has gateway.database_dsn, or stop the strategies",
        )
    file = sqlite_file(config.database_dsn)
    if file and not os.access(file, os.R_OK | os.W_OK):
        problem = "this account may not write" if os.path.lexists(file) else "there is no database"
        raise QmtlError(
            "E_UNAVAILABLE",
            f"no Gateway answers, and {problem} {file}",
            "check QMTL_HOME: it names the folder of the stack to halt; use the account that started it",
        )
