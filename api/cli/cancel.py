"""`qmtl world cancel`: cancel open orders of a world."""

from typing import Annotated

import typer

from api.cli.connection import gateway_as
from api.cli.options import As, Output, Reason, WorldArgument
from api.cli.output import Format, guarded, print_result
from qmtl_sdk.contracts.orders import CancelRequest, CancelResult

app = typer.Typer()


@app.command()
@guarded
def cancel(
    world: WorldArgument,
    order_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ORDER_ID…",
            show_default=False,
            help="ids of orders; qmtl world orders W -o json lists them",
        ),
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
        raise typer.BadParameter("name orders or give --all, one of the two")
    with gateway_as(as_name) as client:
        done = client.cancel_orders(
            world, CancelRequest(order_ids=tuple(order_ids or ()), all=every, reason=reason)
        )
    print_result(
        output,
        done.json_dict(),
        lambda: cancel_text(done, len(set(order_ids or ()))),
    )


def cancel_text(done: CancelResult, given: int) -> str:
    """Describe what became of a request that names `given` orders; 0: it was for all."""
    text = f"{done.cancelled} cancelled; venues are asked to cancel {done.requested}"
    others = given - done.cancelled - done.requested
    return f"{text}; not open, or asked before: {others} of the ids given" if others > 0 else text
