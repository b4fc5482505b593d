"""Migrations, run when a process opens the database. A database that is newer than this code is refused."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from qmtl_sdk.contracts.errors import QmtlError

_FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Bring the database to this version. Raises QmtlError (E_DATABASE_NEWER). The caller keeps other processes from doing the same."""
    config = configuration()
    script = ScriptDirectory.from_config(config)
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise QmtlError("E_DATABASE_NEWER", f"the database is at version {current}, which this QMTL does not know", "upgrade QMTL, or name another database")
    if current == script.get_current_head():
        return
    with engine.connect().execution_options(qmtl_purpose="write") as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        connection.commit()


def configuration() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    return config
