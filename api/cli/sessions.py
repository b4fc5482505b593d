"""`qmtl world sessions`: the strategies that run."""

from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.status import session_text

app = typer.Typer()


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
