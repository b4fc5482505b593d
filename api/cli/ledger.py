"""`qmtl world positions | ledger`, `qmtl ledger verify | rebuild | report | book`: what strategies hold."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

import typer
from pydantic import TypeAdapter

from api.cli.connection import gateway
from api.cli.names import StrategyNames, strategy_ids
from api.cli.options import OneStrategy, Output, StrategyArgument, WorldArgument, with_options
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.figures import number
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.fills import FillBatch
from qmtl_sdk.contracts.ledger import Booking, HeldPosition, LedgerCheck, LedgerLine
from qmtl_sdk.contracts.worlds import UtcTime

app = typer.Typer()
ledger_app = typer.Typer(
    help="Fills and bookings; the ledgers of worlds against their order logs.", no_args_is_help=True
)


@app.command()
@guarded
def positions(
    world: WorldArgument,
    strategy: OneStrategy = None,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="as they were then, such as 2026-11-02T15:00Z"),
    ] = None,
    closed: Annotated[bool, typer.Option("--closed", help="those that are flat too")] = False,
    output: Output = Format.TEXT,
) -> None:
    """List what strategies hold: quantity, average cost, profit realised and not, fees.

    Profit is in the currency of the account, before fees. `income` are dividends. `mark` is the price of the
    newest fill or adjustment.
    """
    with gateway() as client:
        chosen = strategy_ids(client, world, [strategy] if strategy else [])
        found = client.positions(world, _time(as_of), next(iter(chosen.values()), ""), closed)
        names = StrategyNames(client, world)
        rows = [_position_row(item, names[item.strategy_id]) for item in found]
    header = [
        "strategy",
        "account",
        "symbol",
        "quantity",
        "average",
        "mark",
        "unrealised",
        "realised",
        "income",
        "fees",
    ]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "no positions",
    )


@app.command()
@guarded
def ledger(
    world: WorldArgument,
    strategy: OneStrategy = None,
    after: Annotated[int, typer.Option(min=0, help="only entries after this number")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")] = 100,
    output: Output = Format.TEXT,
) -> None:
    """List the entries of a world's ledger, oldest first. `-o json` adds both sides of each amount."""
    with gateway() as client:
        chosen = strategy_ids(client, world, [strategy] if strategy else [])
        found = client.ledger(world, after, limit, next(iter(chosen.values()), ""))
        names = StrategyNames(client, world)
        rows = [_line_row(line, names[line.entry.strategy_id]) for line in found]
    header = [
        "no",
        "when (UTC)",
        "strategy",
        "account",
        "entry",
        "symbol",
        "quantity",
        "price",
        "cash",
        "holds",
    ]
    print_result(
        output,
        [line.json_dict() for line in found],
        lambda: table(header, rows) if rows else "there are no more entries",
    )


@ledger_app.command()
@guarded
def verify(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Compare a ledger with the order log, to the last digit. Fails where they differ."""
    with gateway() as client:
        found = client.verify_ledger(world)
    print_result(output, found.json_dict(), lambda: _check_text(found))
    if not found.is_good:
        raise typer.Exit(1)


@ledger_app.command()
@guarded
def rebuild(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Book a ledger anew from the order log. Fills wait meanwhile."""
    with gateway() as client:
        found = client.rebuild_ledger(world)
    print_result(output, found.json_dict(), lambda: _check_text(found))


@dataclass(frozen=True)
class ReportOptions:
    """What `qmtl ledger report` takes."""

    world: WorldArgument
    order_id: Annotated[str, typer.Argument(metavar="ORDER_ID", help="`qmtl world orders W -o json` has it")]
    fill_id: Annotated[
        str, typer.Option("--id", help="the venue's id of the fill; repeated, it changes nothing")
    ]
    account: Annotated[str, typer.Option(help="the account that holds what was bought, such as `paper`")]
    quantity: Annotated[str, typer.Option(help="units that were filled")]
    price: Annotated[str, typer.Option(help="of one unit")]
    fee: Annotated[str, typer.Option(help="what it cost; a rebate is negative")] = "0"
    output: Output = Format.TEXT


@ledger_app.command()
@guarded
@with_options
def report(options: ReportOptions) -> None:
    """Report a fill of an order that no broker reports, such as one that was executed by hand."""
    fill = {name: getattr(options, name) for name in ("fill_id", "account", "quantity", "price", "fee")}
    body = {"world_id": options.world, "fills": [{"order_id": options.order_id, "fill": fill}]}
    batch = validated(FillBatch, body, "E_BODY_INVALID", "fill")
    with gateway() as client:
        found = client.report_fills(batch)
    print_result(
        options.output,
        found.json_dict(),
        lambda: "recorded" if found.recorded else "it was recorded before; nothing changed",
    )


@dataclass(frozen=True)
class BookOptions:
    """What `qmtl ledger book` takes."""

    world: WorldArgument
    strategy: StrategyArgument
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL")]
    kind: Annotated[str, typer.Option(help="dividend, split, fee, adjustment or reversal")]
    account: Annotated[str, typer.Option(help="the account that holds the position, such as `paper`")]
    booking_id: Annotated[str, typer.Option("--id", help="a name of your own; repeated, it changes nothing")]
    reason: Annotated[str, typer.Option(help="stored with the entry")]
    amount: Annotated[str | None, typer.Option(help="cash of a dividend, or a fee")] = None
    ratio: Annotated[str | None, typer.Option(help="of a split: new units for each old one")] = None
    quantity: Annotated[str | None, typer.Option(help="of an adjustment: units more, or less than 0")] = None
    price: Annotated[str | None, typer.Option(help="of an adjustment: of one unit")] = None
    corrects: Annotated[str | None, typer.Option(help="of a reversal: the id of the fill")] = None
    output: Output = Format.TEXT


@ledger_app.command()
@guarded
@with_options
def book(options: BookOptions) -> None:
    """Book a dividend, split, fee, adjustment, or the reversal of a wrong fill."""
    with gateway() as client:
        chosen = strategy_ids(client, options.world, [options.strategy])
        body = {
            "strategy_id": chosen[options.strategy],
            **{name: getattr(options, name) for name in Booking.model_fields if hasattr(options, name)},
        }
        given = {name: value for name, value in body.items() if value is not None}
        booking = validated(Booking, given, "E_BODY_INVALID", "booking")
        is_new = client.book(options.world, booking)
    print_result(
        options.output,
        {"recorded": int(is_new)},
        lambda: "booked" if is_new else "it was booked before; nothing changed",
    )


def _time(text: str | None) -> datetime | None:
    """Read a time. Raises QmtlError (E_BODY_INVALID)."""
    if text is None:
        return None
    try:
        found: datetime = TypeAdapter(UtcTime).validate_python(text)
    except ValueError as error:
        raise QmtlError(
            "E_BODY_INVALID", f"{text[:40]!r} is no time", "write one such as 2026-11-02T15:00Z"
        ) from error
    return found


def _position_row(item: HeldPosition, name: str) -> list[str]:
    held = item.position
    return [
        name,
        item.account,
        item.symbol,
        number(held.quantity),
        number(item.average),
        number(held.mark),
        number(item.unrealised),
        number(held.realised),
        number(held.income),
        number(held.fees),
    ]


def _line_row(line: LedgerLine, name: str) -> list[str]:
    entry = line.entry
    return [
        str(line.seq),
        f"{line.at:%Y-%m-%d %H:%M:%S}",
        name,
        entry.account,
        entry.kind.value,
        entry.symbol,
        number(entry.quantity),
        number(entry.price),
        number(entry.cash - entry.fee),
        number(line.after.quantity),
    ]


def _check_text(found: LedgerCheck) -> list[str]:
    head = f"{found.entries} entries, {found.positions} positions"
    if found.is_good:
        return [f"the ledger of {found.world_id} is what its order log says: {head}"]
    again = f"qmtl ledger rebuild {found.world_id} books it anew"
    return [f"the ledger of {found.world_id} differs from its order log", *found.differences, again]
