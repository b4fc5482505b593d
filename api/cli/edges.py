"""`qmtl world override`: the edge to live, which is closed by hand."""

from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.connection import gateway_as
from api.cli.options import As, Output, Reason, WorldArgument, with_options
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.edges import EdgeOverride
from qmtl_sdk.contracts.errors import QmtlError

app = typer.Typer()


@dataclass(frozen=True, kw_only=True)
class OverrideOptions:
    """Options of `qmtl world override`."""

    world: WorldArgument
    src: Annotated[
        str | None,
        typer.Argument(metavar="SRC", help="start of the edge: domain:backtest"),
    ] = None
    dst: Annotated[
        str | None,
        typer.Argument(metavar="DST", help="end of the edge: domain:live"),
    ] = None
    reason: Reason = ""
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def override(options: OverrideOptions) -> None:
    """Show whether the edge to live is open; with SRC and DST, close it. Only an apply opens it."""
    world = options.world
    with gateway_as(options.as_name) as client:
        if options.src is not None and options.dst is not None:
            body = {"src": options.src, "dst": options.dst, "active": False, "reason": options.reason}
            client.override(world, validated(EdgeOverride, body, "E_BODY_INVALID", "edge"))
        elif options.src is not None:
            raise QmtlError("E_BODY_INVALID", "an edge has two ends", f"qmtl world override {world} SRC DST")
        found = client.overrides(world)
    rows = [[item.src, item.dst, "open" if item.active else "closed", item.reason] for item in found]
    print_result(
        options.output,
        [item.json_dict() for item in found],
        lambda: table(["from", "to", "edge", "reason"], rows) if rows else "no edge is overridden",
    )
