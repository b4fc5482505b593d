"""`qmtl world audit`: the audit trail of a world."""

import re
from typing import Annotated, Any

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, table

app = typer.Typer()

_STRATEGY_ID = re.compile(r"strategy:[0-9a-f]{64}")


@app.command()
@guarded
def audit(
    world: WorldArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="check the hash chain from its first entry")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="only entries after this number")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")] = 100,
    output: Output = Format.TEXT,
) -> None:
    """List who did what in a world, oldest first. --verify fails where an entry was changed or is missing."""
    with gateway() as client:
        found = client.audit(world, after, limit, verify)
        names = StrategyNames(client, world)
        rows = [_row(entry, names) for entry in found["entries"]]
    header = ["no", "when (UTC)", "who", "action", "subject", "run"]

    def text() -> list[Any]:
        lines: list[Any] = [table(header, rows) if rows else "there are no more entries"]
        if not verify:
            return lines
        orders = f", {found['orders_verified']} sealed rows of the order log"
        return [*lines, f"the chain is whole: {found['verified']} entries{orders}"]

    print_result(output, found, text)


def _row(entry: dict[str, Any], names: StrategyNames) -> list[str]:
    """Format an entry. (Any: the Gateway's JSON.)"""
    subject = _STRATEGY_ID.sub(lambda found: names[found[0]], str(entry["subject"]))
    return [
        str(entry["number"]),
        entry["at"][:19].replace("T", " "),
        entry["actor"],
        entry["action"],
        subject[:40],
        str(entry["correlation_id"])[:24],
    ]
