"""`qmtl world audit` and `qmtl audit`: the audit trail of a world, and of what belongs to none."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from api.cli.connection import gateway, gateway_as_owner
from api.cli.names import StrategyNames
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, table

app = typer.Typer()
general = typer.Typer()

# The age at which the rows of the order log are sealed, with a day for an upkeep that was away.
_SEALED_WITHIN = timedelta(days=2)

_STRATEGY_ID = re.compile(r"strategy:[0-9a-f]{64}")

_Verify = Annotated[
    bool, typer.Option("--verify", help="check the hash chain, and the order log by its seals")
]
_After = Annotated[int, typer.Option(min=0, help="only entries after this number")]
_Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")]


@app.command()
@guarded
def audit(
    world: WorldArgument,
    verify: _Verify = False,
    after: _After = 0,
    limit: _Limit = 100,
    output: Output = Format.TEXT,
) -> None:
    """List who did what in a world, oldest first.

    --verify fails where an entry, or a sealed row of the order log, was changed, added or is missing. Compare
    the newest hash that it prints with one that was copied elsewhere before.
    """
    with gateway() as client:
        found = client.audit(world, after, limit, verify)
        names = StrategyNames(client, world)
        rows = [_row(entry, names.__getitem__) for entry in found["entries"]]
    _print(output, found, rows)


@general.command("audit")
@guarded
def audit_of_all(
    verify: _Verify = False, after: _After = 0, limit: _Limit = 100, output: Output = Format.TEXT
) -> None:
    """List who registered people, issued tokens and archived rows, oldest first. --verify as of a world."""
    with gateway_as_owner() as client:
        found = client.audit(None, after, limit, verify)
    _print(output, found, [_row(entry, str) for entry in found["entries"]])


def _print(output: Format, found: dict[str, Any], rows: list[list[str]]) -> None:
    """Print entries. (Any: the Gateway's JSON.)"""
    header = ["no", "when (UTC)", "who", "action", "subject", "run"]

    def text() -> list[Any]:
        lines: list[Any] = [table(header, rows) if rows else "there are no more entries"]
        if found["verified"] is None:
            return lines
        orders = f", {found['orders_verified']} sealed rows of the order log"
        return [
            *lines,
            f"the chain is whole: {found['verified']} entries{orders}",
            f"its newest hash: {found['head'] or 'none'}",
            *_unsealed(found["orders_unsealed"], found["orders_unsealed_since"]),
        ]

    print_result(output, found, text)


def _unsealed(rows: int, since: str | None) -> list[str]:
    """Say how many rows of the order log are not sealed, and whether they should be."""
    if not since:
        return []
    when = since[:16].replace("T", " ")
    lines = [f"not sealed yet: {rows} rows of the order log since {when}; a change of them is not found"]
    if since < (datetime.now(UTC) - _SEALED_WITHIN).isoformat():
        lines.append("they should be sealed by now: does the upkeep run? qmtl status says what fails")
    return lines


def _row(entry: dict[str, Any], name_of: Callable[[str], str]) -> list[str]:
    """Format an entry. (Any: the Gateway's JSON.)"""
    subject = _STRATEGY_ID.sub(lambda found: name_of(found[0]), str(entry["subject"]))
    return [
        str(entry["number"]),
        entry["at"][:19].replace("T", " "),
        entry["actor"],
        entry["action"],
        subject[:40],
        str(entry["correlation_id"])[:24],
    ]
