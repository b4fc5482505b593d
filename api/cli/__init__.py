"""The `qmtl` command: one module per group of commands, and their text in `text/`."""

import sys

from api.cli.early_halt import send_early


def main() -> None:
    """Run the command. A halt is on its way before the rest is loaded."""
    send_early(sys.argv[1:])
    from api.cli.main import main as run

    run()
