"""`qmtl world allocations | rebalance-plan`: shares of the capital, and what other shares would order."""

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, read_file, table
from qmtl_sdk.contracts import share_changes
from qmtl_sdk.contracts.documents import mapping_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan, WorldPlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.contracts.share_changes import Rules, common_rules, update_of
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

Weights = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORLD=SHARE…", help="shares of the capital, such as equities=0.3 fx=0.2"),
]
"""Shares of worlds on the command line."""


Lot = Annotated[
    str | None, typer.Option(help="the step of quantities; without it and a file, the rules of the worlds")
]
"""The lot on the command line."""


@app.command()
@guarded
def allocations(
    weights: Weights = None,
    etag: Annotated[str, typer.Option(help="refuse unless the present ones have this etag")] = "",
    output: Output = Format.TEXT,
) -> None:
    """Show which share of the capital each world has, or set those that are named.

    A world's strategies trade with its capital, each by the weight of its decision. No order follows.
    """
    with gateway() as client:
        if weights:
            found = client.set_allocations(update_of(client.allocations(), read_shares(weights), etag))
        else:
            found = client.allocations()
    rows = [
        [item.world_id, f"{item.weight:f}", str(len(item.strategies) or "")] for item in found.allocations
    ]
    print_result(
        output,
        found.json_dict(),
        lambda: [
            table(["world", "share", "strategies with shares of their own"], rows)
            if rows
            else "no world has a share yet: qmtl world allocations WORLD=0.3",
            f"etag {found.etag}",
        ],
    )


@app.command("rebalance-plan")
@guarded
def rebalance_plan(
    weights: Weights = None,
    instruments: Annotated[
        Path | None, typer.Option("--instruments", help="YAML with lots, ticks, costs (docs/capital.md)")
    ] = None,
    lot: Lot = None,
    output: Output = Format.TEXT,
) -> None:
    """Show the orders that other shares of the capital would lead to. Nothing is changed.

    Positions are scaled by new share / present share, and netted for each symbol over the strategies of a
    world. They are valued at their newest fills.
    """
    with gateway() as client:
        if not weights:
            raise QmtlError(
                "E_BODY_INVALID", "no share is given", "such as: qmtl world rebalance-plan equities=0.2"
            )
        request = changed_request(client, weights, read_rules(instruments, lot))
        found = client.plan_rebalancing(request)
    print_result(output, found.json_dict(), lambda: plan_text(found))


def changed_request(
    client: GatewayClient, weights: list[str], rules: Rules | None
) -> MultiWorldRebalanceRequest:
    """Build the request that changes shares, from the present shares and positions. Raises QmtlError."""
    present = client.allocations()
    update = update_of(present, read_shares(weights), present.etag)
    worlds = sorted(item.world_id for item in update.allocations)
    if rules is None:
        rules = common_rules({world_id: client.world(world_id).spec.instruments for world_id in worlds})
    held = {world_id: client.positions(world_id) for world_id in worlds}
    return share_changes.changed_request(present, update, rules, held)


def read_shares(weights: list[str]) -> dict[str, Decimal]:
    """Read shares as `equities=0.3`, by world. Raises QmtlError (E_BODY_INVALID)."""
    found = dict[str, Decimal]()
    for text in weights:
        name, _, number = text.partition("=")
        weight = read_share(number if name else "", text, "write WORLD=0.3")
        if name in found:
            raise QmtlError("E_BODY_INVALID", f"{name[:64]} is named twice", "give each world one share")
        found[name] = weight
    return found


def read_share(number: str, text: str, remedy: str) -> Decimal:
    """Read a share. `text`: what it is a part of. Raises QmtlError (E_BODY_INVALID, with the remedy)."""
    try:
        share = Decimal(number)
    except InvalidOperation as error:
        raise QmtlError("E_BODY_INVALID", f"{text[:40]!r} is no share", remedy) from error
    if not share.is_finite() or not 0 <= share <= 1:
        raise QmtlError("E_BODY_INVALID", f"{text[:40]!r}: a share is between 0 and 1", remedy)
    return share


def read_rules(file: Path | None, lot: str | None) -> dict[str, Any] | None:
    """Read the rules of instruments; None: those of the worlds. (Any: YAML.) Raises QmtlError."""
    found: dict[str, Any] = {}
    if file is not None:
        text = read_file(file, "E_BODY_INVALID", "file with the rules of instruments")
        found = mapping_of(text, "E_BODY_INVALID", "instruments", "see docs/capital.md for an example")
    if file is None and lot is None:
        return None
    return {**({"lot": lot} if lot else {"lot": "1"}), **found}


def plan_text(plan: RebalancePlan) -> list[object]:
    """Describe a plan: scales, what is ordered, and what is not and why."""
    rows = [
        [
            delta.world_id,
            delta.venue,
            delta.symbol,
            *(f"{value:f}" for value in (delta.from_quantity, delta.to_quantity, delta.quantity)),
            f"{delta.notional:.2f}",
            f"{delta.cost:.2f}",
            "",
        ]
        for delta in plan.deltas
    ]
    rows += [
        [
            item.world_id,
            item.venue,
            item.symbol,
            "",
            "",
            f"{item.quantity:f}",
            f"{item.notional:.2f}",
            "",
            item.detail,
        ]
        for item in plan.dropped
    ]
    scales = [
        f"{world_id}: {world.before:f} → {world.after:f}, {_scale_text(world)}"
        for world_id, world in plan.per_world.items()
    ]
    header = ["world", "venue", "symbol", "from", "to", "delta", "notional", "cost", "dropped"]
    orders = table(header, rows) if rows else "nothing is ordered: no position changes"
    return [*scales, orders, f"turnover {plan.turnover:.2f}; etag {plan.etag}"]


def _scale_text(world: WorldPlan) -> str:
    if not world.before and world.after:
        return "positions stay; its strategies order what their targets lack at the next bar"
    return f"positions times {round(world.scale, 6):f}"
