"""`qmtl config show | validate`: the configuration in force."""

from typing import Annotated

import typer

from activities.brokers.router import brokers
from activities.events.bus import BUSES
from activities.settings import settings
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.config import config_file, explain

app = typer.Typer(help="The configuration in force.", no_args_is_help=True)


# What is listed of each key.
_COLUMNS = ["key", "value", "from", "meaning"]


@app.command()
@guarded
def show(output: Output = Format.TEXT) -> None:
    """List every key, its value, where the value comes from, and what the key means."""
    rows = explain(settings())
    print_result(
        output,
        [dict(zip(_COLUMNS, row, strict=True)) for row in rows],
        lambda: table(_COLUMNS, [list(row) for row in rows], unbroken=["key"]),
    )


@app.command()
@guarded
def validate(
    target: Annotated[str, typer.Option(help="all: everything that the profile needs")] = "all",
    output: Output = Format.TEXT,
) -> None:
    """Check whether services can start with this configuration; say what is missing or wrong.

    Brokers are opened too, with their options and, where they need some, credentials of this environment.
    """
    if target != "all":
        raise QmtlError("E_CONFIG", f"{target!r} is not a target", "use --target all")
    config = settings()
    config.require_profile()
    brokers(config.orders)  # opened, as a router does: only they know their options
    BUSES.load(config.events.bus)
    print_result(
        output,
        {"profile": config.profile, "file": str(config_file() or ""), "missing": []},
        lambda: f"profile {config.profile}: nothing is missing",
    )
