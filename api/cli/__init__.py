"""The `qmtl` command: one module per group of commands, and their text in `text/`."""

from api.cli.main import main

__all__ = ["main"]
