"""`qmtl world sessions` and `qmtl session end`: the strategies that run."""

import uuid
from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as
from api.cli.options import As, Output
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.status import session_text
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.routes.running import SessionKey

app = typer.Typer()
session_app = typer.Typer(help="Sessions of running strategies.", no_args_is_help=True)


@app.command()
@guarded
def sessions(
    world: Annotated[
        str | None, typer.Argument(metavar="[WORLD]", help="only this world; without it, all worlds")
    ] = None,
    ended: Annotated[bool, typer.Option("--ended", help="include sessions that have ended")] = False,
    output: Output = Format.TEXT,
) -> None:
    """List the strategies that run: who runs them, where, and whether they are healthy."""
    with gateway() as client:
        found = client.sessions(world, ended)
        running = {item.world_id for item in found if not item.ended_at}
        fences = {world_id: client.fence(world_id) for world_id in sorted(running)}
    rows = [
        [
            item.label,
            item.world_id,
            item.execution_domain,
            f"{item.actor} at {item.host}",
            session_text(item, fences.get(item.world_id)),
            item.report.bar[:16].replace("T", " "),
            f"{sum(item.report.positions.values())}, {item.report.lag_s:g} s behind",
            item.report.fault,
        ]
        for item in found
    ]
    header = ["strategy", "world", "domain", "who", "state", "newest bar", "events", "fault"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "nothing runs",
    )


@session_app.command()
@guarded
def end(
    session_id: Annotated[
        str, typer.Argument(metavar="SESSION_ID", help="qmtl world sessions -o json lists them")
    ],
    flatten: Annotated[
        bool, typer.Option("--flatten", help="close what its strategy holds, by orders that only reduce")
    ] = False,
    reason: Annotated[
        str, typer.Option("--reason", help="shown to whoever runs it")
    ] = "ended by an operator",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """End a session: the strategy's orders are refused until its runner opens another one.

    Its runner does that where the strategy is still active: `qmtl world halt W -s STRATEGY` stops it.
    """
    flatten_id = uuid.uuid4().hex if flatten else None
    with gateway_as(as_name) as client:
        ended = client.end_session(SessionKey(session_id), printable(reason, MAX_REASON), flatten=flatten_id)
    closed = f"; its positions are being closed: qmtl world positions {ended.world_id}" if flatten else ""
    print_result(output, ended.json_dict(), lambda: f"ended: {ended.label} in {ended.world_id}{closed}")
