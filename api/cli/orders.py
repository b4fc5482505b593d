"""`qmtl world orders`: the orders of a world, as the fence decided about them."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames, strategy_ids
from api.cli.options import OneStrategy, Output, WorldArgument, with_options
from api.cli.order_feed import OrderFeed
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.orders import HEADER, change_line, columns, order_row
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import OrderRecord
from qmtl_sdk.contracts.refusals import UNLOGGED, Refusal
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

# Those that an order in the list can have.
_REASONS = [reason.value for reason in Refusal if reason not in UNLOGGED]


def _known_reason(reason: str | None) -> str | None:
    if reason is not None and reason not in _REASONS:
        raise typer.BadParameter(f"{reason!r} is no reason of an order in the list: {', '.join(_REASONS)}")
    return reason


@dataclass(frozen=True)
class OrdersOptions:
    """What `qmtl world orders` takes."""

    world: WorldArgument
    tail: Annotated[
        int,
        typer.Option(
            "--tail",
            "--limit",
            "-n",
            min=1,
            max=1000,
            help="how many: the newest ones, or the first ones after --after",
        ),
    ] = 20
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="go on with new orders and changes until Ctrl-C")
    ] = False
    strategy: OneStrategy = None
    refused: Annotated[bool, typer.Option("--refused", help="only orders that the fence refused")] = False
    withheld: Annotated[
        bool, typer.Option("--withheld", help="only orders that their strategy did not send")
    ] = False
    reason: Annotated[
        str | None,
        typer.Option(
            help="only orders refused for this reason, or `withheld`",
            metavar=f"[{'|'.join(_REASONS)}]",
            callback=_known_reason,
        ),
    ] = None
    after: Annotated[
        int | None, typer.Option(min=0, help="the first orders after this number of the order log")
    ] = None
    output: Output = Format.TEXT

    @property
    def states(self) -> list[str]:
        """The states of orders that were never accepted, as far as these are meant."""
        return ["refused"] * self.refused + ["withheld"] * self.withheld


@app.command()
@guarded
@with_options
def orders(options: OrdersOptions) -> None:
    """List the newest orders of a world, newest last: accepted, refused or withheld, and what became of them.

    `price` is the average of what was filled. With --follow and -o json, each line is an order.
    """
    if options.follow and options.after is not None:
        raise typer.BadParameter("--follow goes on from the newest orders; leave --after out")
    if options.reason is not None and options.states:
        raise typer.BadParameter("--reason names one reason; leave --refused and --withheld out")
    with gateway() as client:
        wanted = _filter(client, options)
        if not options.follow:
            found = client.list_orders(options.world, wanted)
            names = StrategyNames(client, options.world)
            rows = [order_row(item, names[item.order.strategy_id]) for item in found]
            print_result(
                options.output,
                [item.json_dict() for item in found],
                lambda: table(list(HEADER), rows) if rows else "no orders",
            )
            return
    if options.output is Format.TEXT:
        _print_lines([columns(list(HEADER))])
    show = _show_json if options.output is Format.JSON else _show_lines
    OrderFeed(options.world, wanted, show).run()


def _filter(client: GatewayClient, options: OrdersOptions) -> OrderFilter:
    """Return which orders are listed. Raises QmtlError (E_STRATEGY_UNKNOWN)."""
    given = [options.strategy] if options.strategy else []
    chosen = strategy_ids(client, options.world, given, older=True)
    return OrderFilter.model_validate(
        {
            "strategy_id": next(iter(chosen.values()), ""),
            "state": options.states,
            "reason": options.reason,
            "after": options.after or 0,
            "newest": options.after is None,
            "limit": options.tail,
        }
    )


def _show_json(found: Sequence[OrderRecord], _: StrategyNames) -> None:
    _print_lines([json.dumps(item.json_dict()) for item in found])


def _show_lines(found: Sequence[OrderRecord], names: StrategyNames) -> None:
    _print_lines([printable(change_line(item, names[item.order.strategy_id])) for item in found])


def _print_lines(lines: Sequence[str]) -> None:
    """Print lines at once, however long the next ones take."""
    sys.stdout.writelines(f"{line}\n" for line in lines)
    sys.stdout.flush()
