"""`python -m api.cli`: the command, where it is not on PATH."""

from api.cli.main import main

main()
