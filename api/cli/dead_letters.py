"""`qmtl events dead-letters list | retry | drop`: events that the relay could not publish."""

from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, table

app = typer.Typer(help="Events that could not be published.", no_args_is_help=True)

NumberArgument = Annotated[int, typer.Argument(min=1, help="the number that `list` shows")]


@app.command("list")
@guarded
def list_dead_letters(
    after: Annotated[int, typer.Option(min=0, help="only those after this number")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")] = 100,
    output: Output = Format.TEXT,
) -> None:
    """List the events that could not be published, each with the reason, oldest first."""
    with gateway() as client:
        found = client.dead_letters(after, limit)
    rows = [
        [
            str(item.number),
            f"{item.at:%Y-%m-%d %H:%M:%S}",
            item.world_id,
            item.type,
            item.subject[:40],
            item.reason,
        ]
        for item in found
    ]
    header = ["no", "when (UTC)", "world", "event", "subject", "reason"]
    print_result(
        output,
        {"dead_letters": [item.json_dict() for item in found]},
        lambda: [table(header, rows) if rows else "there are no dead letters"],
    )


@app.command()
@guarded
def retry(number: NumberArgument, output: Output = Format.TEXT) -> None:
    """Publish an event again, after what stopped it was mended."""
    with gateway() as client:
        found = client.retry_dead_letter(number)
    print_result(output, found.json_dict(), lambda: f"dead letter {number} waits for the relay again")


@app.command()
@guarded
def drop(number: NumberArgument, output: Output = Format.TEXT) -> None:
    """Give an event up: it is never published. The audit trail keeps what changed."""
    with gateway() as client:
        found = client.drop_dead_letter(number)
    print_result(output, found.json_dict(), lambda: f"dead letter {number} was dropped")
