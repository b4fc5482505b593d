"""`qmtl world orders`: the orders of a world, as the fence decided about them."""

from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.orders import REFUSALS, OrderRecord, Refusal

app = typer.Typer()


@app.command()
@guarded
def orders(
    world: WorldArgument,
    after: Annotated[int, typer.Option(min=0, help="only orders after this number of the order log")] = 0,
    reason: Annotated[
        Refusal | None, typer.Option(help="only orders refused for this reason, or `withheld`")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")] = 50,
    output: Output = Format.TEXT,
) -> None:
    """List the orders of a world, oldest first: accepted, refused or withheld, and what became of them."""
    with gateway() as client:
        found = client.orders(world, after, limit, reason.value if reason else None)
        names = StrategyNames(client, world)
        rows = [
            [
                str(item.seq),
                f"{item.at:%Y-%m-%d %H:%M:%S}",
                names[item.order.strategy_id],
                f"{item.order.side} {item.order.quantity} {item.order.symbol}",
                item.order.execution_domain.value,
                str(item.order.epoch),
                item.state.value.replace("_", " "),
                order_detail(item),
            ]
            for item in found
        ]
    header = ["no", "when (UTC)", "strategy", "order", "domain", "epoch", "state", "detail"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "no orders",
    )


def order_detail(item: OrderRecord) -> str:
    """Return why an order was withheld or refused, what was filled, or why it ended."""
    if item.withheld:
        return item.withheld
    if item.reason:
        return REFUSALS[item.reason]
    last = item.changes[-1].reason if item.changes else ""
    if item.fill is None:
        return last
    filled = f"{item.fill.quantity} at {item.fill.price} by {item.fill.account}"
    return f"{filled}; {last}" if last else filled
