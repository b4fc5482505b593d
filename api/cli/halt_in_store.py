"""Halt worlds in the store itself, where no Gateway answers.

Whoever may write the database may halt: the files' owner, or who holds the DSN with its password.
"""

import os

from activities.fence.halt_all import halt_all
from activities.fence.store import SqlFenceStore
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.settings import Settings, local_user, settings
from activities.storage.opening import open_database
from qmtl_sdk.contracts.access import principal_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import printable

# Seconds to wait for the fence of one world: by then the database has ended a transaction that hangs.
_WAIT_S = 45.0

# Seconds in which worlds whose fence is held are tried again, where all are halted.
_ALL_WITHIN_S = 10.0


def halt_in_store(
    world: str | None, strategy: str | None, as_name: str | None, reason: str, wait_s: float = _WAIT_S
) -> list[str]:
    """Halt a world, a strategy of it, or all worlds; return their ids.

    The audit trail names the user of this machine. `wait_s`: seconds to wait for a fence that another
    transaction holds.

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
    database = open_database(config.database_dsn)
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


def require_store(config: Settings) -> None:
    """Refuse a database that is not the Gateway's. Raises QmtlError (E_UNAVAILABLE)."""
    if config.gateway.url and not config.gateway.database_dsn:
        raise QmtlError(
            "E_UNAVAILABLE",
            f"the Gateway at {config.gateway.url} does not answer, and its database is not configured here",
            "halt on a machine that has gateway.database_dsn, or stop the strategies",
        )
    file = config.database_dsn.removeprefix("sqlite:///")
    if file != config.database_dsn and not os.access(file, os.R_OK | os.W_OK):
        problem = "this account may not write" if os.path.lexists(file) else "there is no database"
        raise QmtlError(
            "E_UNAVAILABLE",
            f"no Gateway answers, and {problem} {file}",
            "check QMTL_HOME: it names the folder of the stack to halt; use the account that started it",
        )
