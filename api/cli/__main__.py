"""Run the command as `python -m api.cli`, where `qmtl` is not on PATH."""

from api.cli import main

main()
