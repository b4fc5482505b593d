"""`qmtl world cancel`: cancel open orders of a world."""

from typing import Annotated

import typer

from api.cli.connection import gateway_as
from api.cli.options import As, Output, Reason, WorldArgument
from api.cli.output import Format, guarded, print_result
from qmtl_sdk.contracts.orders import CancelRequest

app = typer.Typer()


@app.command()
@guarded
def cancel(
    world: WorldArgument,
    order_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ORDER_ID]…", show_default=False, help="ids of orders")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every open order of the world")] = False,
    reason: Reason = "",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Cancel open orders: at once where they were not sent, otherwise by asking their venues.

    `qmtl world orders W` then shows what became of them. New orders are still accepted: `qmtl world halt`
    refuses them.
    """
    if bool(order_ids) is every:
        raise typer.BadParameter("name orders, or all of them with --all")
    with gateway_as(as_name) as client:
        done = client.cancel_orders(
            world, CancelRequest(order_ids=tuple(order_ids or ()), all=every, reason=reason)
        )
    print_result(
        output,
        done.json_dict(),
        lambda: f"{done.cancelled} cancelled; venues are asked to cancel {done.requested}",
    )
