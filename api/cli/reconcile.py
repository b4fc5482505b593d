"""`qmtl world reconcile`: what brokers' accounts hold, against the ledger."""

from decimal import Decimal

import typer
from rich.table import Table

from api.cli.connection import gateway
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.reconciliation import ComparedPosition, Reconciliation

app = typer.Typer()


@app.command()
@guarded
def reconcile(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Show the newest comparison of each account with ledger and order log, and what differs.

    Positions are those of the account: of all worlds that trade in it. The command compares nothing itself:
    the order router does it when it starts, and every minute (`orders.reconcile_every_s`).
    """
    with gateway() as client:
        found = client.reconciliations(world)
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: (
            [part for item in found for part in _shown(item)]
            or "no account was compared yet: the order router does it when it starts"
        ),
    )


def _shown(item: Reconciliation) -> list[str | Table]:
    head = f"{item.account} ({item.domain.value})"
    if not item.compared and not item.fault:
        return [f"{head}: its broker has no books of its own, so the ledger alone says what it holds"]
    if not item.compared:
        return [f"{head}: not compared yet: {item.fault}"]
    lines: list[str | Table] = [f"{head}, compared {item.at:%Y-%m-%d %H:%M:%S} UTC"]
    if item.fault:
        lines.append(f"not compared since: {item.fault}")
    if item.state is not None and item.state.cash is not None:
        lines.append(f"cash at the broker: {_number(item.state.cash)} {item.state.currency}".rstrip())
    if item.positions:
        header = ["symbol", "ledger", "broker", "difference", "since (UTC)"]
        lines.append(table(header, [_row(position) for position in item.positions]))
    lines += [f"order {order.order_id} is open at the broker, not here" for order in item.orders]
    if not item.positions and not item.orders:
        lines.append("nothing of this world is held there, and nothing differs")
    return lines


def _row(position: ComparedPosition) -> list[str]:
    return [
        position.symbol,
        _number(position.ledger),
        _number(position.broker),
        _number(position.difference),
        f"{position.since:%Y-%m-%d %H:%M:%S}" if position.since else "",
    ]


def _number(value: Decimal) -> str:
    return f"{value.normalize():f}" if value else "0"
