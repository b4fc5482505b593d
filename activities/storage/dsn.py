"""What a DSN says, without loading a database driver."""

from pathlib import Path

_SQLITE = "sqlite:///"


def sqlite_file(dsn: str) -> Path | None:
    """Return the file of a SQLite database; None for another one."""
    return Path(dsn.removeprefix(_SQLITE)) if dsn.startswith(_SQLITE) else None
