"""The `qmtl` command: one module per group of commands, and their text in `text/`."""

import sys

from api.cli import early_halt


def main() -> None:
    """Run the command. A halt is on its way before the rest is loaded."""
    try:
        early_halt.send(sys.argv[1:])
        from api.cli.commands import main as run

        run()
    except KeyboardInterrupt:
        hint = "; the halt may have taken effect: qmtl world status WORLD shows it"
        sys.stderr.write(f"qmtl: interrupted{hint if early_halt.was_sent() else ''}\n")
        sys.exit(130)
