"""The `qmtl` command: one module per group of commands, and their text in `text/`."""

import sys

from api.cli import early_halt


def main() -> None:
    """Run the command. A halt is on its way before the rest is loaded."""
    early_halt.send(sys.argv[1:])
    try:
        from api.cli.commands import main as run
    except KeyboardInterrupt:
        sent = (
            early_halt.is_sent() and "; the halt may have been carried out: qmtl world status WORLD shows it"
        )
        sys.exit(f"qmtl: interrupted{sent or ''}")

    run()
