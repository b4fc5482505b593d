"""`qmtl up | down | status | submit | demo | world … | principal … | token … | events … | config …`."""

import os
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from activities import end_loading
from api.cli import (
    allocations,
    apply,
    approvals,
    audit,
    cancel,
    config,
    dead_letters,
    edges,
    flatten,
    halts,
    ledger,
    orders,
    policy,
    principal,
    promotion,
    rebalance_schedules,
    rebalancings,
    reconcile,
    report,
    sessions,
    stack,
    status,
    submit,
    token,
    watch,
    world,
)
from api.cli.options import Output
from api.cli.output import Format, console, guarded, print_result
from qmtl_sdk.runtime.config import ENV

WORLD_COMMANDS = (
    sessions.app,
    watch.app,
    status.app,
    apply.app,
    approvals.app,
    promotion.app,
    halts.app,
    flatten.app,
    edges.app,
    audit.app,
    orders.app,
    cancel.app,
    ledger.app,
    reconcile.app,
    report.app,
    allocations.app,
    rebalancings.app,
    rebalance_schedules.app,
    policy.app,
)
"""Groups of `qmtl world`, in the order of its help text."""

app = typer.Typer(
    name="qmtl", help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
for group in (stack.app, submit.app, audit.general):
    app.add_typer(group)
for group in WORLD_COMMANDS:
    world.app.add_typer(group)
app.add_typer(world.app, name="world")
app.add_typer(ledger.ledger_app, name="ledger")
app.add_typer(sessions.session_app, name="session")
app.add_typer(principal.app, name="principal")
app.add_typer(token.app, name="token")
app.add_typer(config.app, name="config")
events = typer.Typer(help="Events of worlds.", no_args_is_help=True)
events.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(events, name="events")


def main() -> None:
    """Run the command."""
    end_loading()
    app()


@app.callback(invoke_without_command=True)
def root(
    config_file: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="the configuration file, instead of QMTL_CONFIG"),
    ] = None,
    gateway_url: Annotated[
        str | None,
        typer.Option("--gateway-url", metavar="URL", help="the Gateway's address, instead of gateway.url"),
    ] = None,
    show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Judge trading strategies by a policy, and take those that pass to paper and live trading."""
    # As variables, they reach the configuration of every part, and the processes that a command starts.
    if config_file is not None:
        os.environ[ENV] = str(config_file.absolute())
    if gateway_url is not None:
        os.environ["QMTL_GATEWAY__URL"] = gateway_url
    if show_version:
        console.print(f"qmtl {version('qmtl')}")
        raise typer.Exit


@app.command()
@guarded
def demo(
    report: Annotated[Path, typer.Option(help="where to write the HTML report")] = Path("qmtl-demo.html"),
    output: Output = Format.TEXT,
) -> None:
    """Try everything on sample prices: judge three strategies, trade on paper, write a report."""
    from api.cli.demo import run  # loads plotly, which no other command needs

    body, text = run(report)
    print_result(output, body, text)
