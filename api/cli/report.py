"""`qmtl world report`: equity by the ledger, beside the backtests."""

from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames, strategy_ids
from api.cli.options import OneStrategy, Output, WorldArgument
from api.cli.output import Format, guarded, print_result
from api.cli.text.report import report_text
from qmtl_sdk.contracts.equity_report import DEFAULT_REPORT_DAYS, MOST_REPORT_DAYS

app = typer.Typer()


@app.command()
@guarded
def report(
    world: WorldArgument,
    strategy: OneStrategy = None,
    days: Annotated[
        int, typer.Option(min=1, max=MOST_REPORT_DAYS, help="how many days, today (UTC) included")
    ] = DEFAULT_REPORT_DAYS,
    output: Output = Format.TEXT,
) -> None:
    """Show what strategies made by the ledger, beside their backtests: return, drawdown, turnover, costs.

    `-o json` adds each day of the whole world, or of the strategy that is named.
    """
    with gateway() as client:
        chosen = strategy_ids(client, world, [strategy] if strategy else [], older=True)
        found = client.equity_report(world, days, next(iter(chosen.values()), ""))
        names = StrategyNames(client, world)
        lines = report_text(found, names, strategy or "")
    print_result(output, found.json_dict(), lambda: lines)
