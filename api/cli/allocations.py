"""`qmtl world allocations | rebalance-plan`: shares of the capital, and what other shares would order."""

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, read_file, table
from qmtl_sdk.contracts.allocations import AllocationSnapshot, AllocationUpdate, changes_between
from qmtl_sdk.contracts.capital import DEFAULT_LOT
from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.ledger import HeldPosition
from qmtl_sdk.contracts.rebalance_plan import RebalancePlan, WorldPlan
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

Weights = Annotated[
    list[str] | None,
    typer.Argument(metavar="WORLD=WEIGHT…", help="shares of the capital, such as equities=0.3 fx=0.2"),
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

    The strategies of a world share what it has as its decision says. No order follows.
    """
    with gateway() as client:
        if weights:
            found = client.set_allocations(_update(client.allocations(), weights, etag))
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
    client: GatewayClient, weights: list[str], rules: dict[str, Any] | None
) -> MultiWorldRebalanceRequest:
    """Build the request that changes shares, from the present shares and positions. (Any: YAML.)"""
    present = client.allocations()
    update = _update(present, weights, present.etag)
    if rules is None:
        rules = _rules_of(client, {item.world_id for item in update.allocations})
    return _request(client, present, update, rules)


def _update(present: AllocationSnapshot, weights: list[str], etag: str) -> AllocationUpdate:
    """Read shares. A strategy with a share of its own keeps its part of its world."""
    held = {item.world_id: item for item in present.allocations}
    items = []
    for name, weight in read_shares(weights).items():
        old = held.get(name)
        if old is not None and old.strategies and old.weight != weight:
            raise QmtlError(
                "E_WEIGHT",
                f"strategies of {name} have shares of their own, which would have to change too",
                "name all of them: POST /allocations, or rebalance-apply --plan-file FILE",
            )
        items.append({"world_id": name, "weight": weight, "strategies": old.strategies if old else {}})
    body = {"allocations": items, "etag": etag}
    found: AllocationUpdate = validated(AllocationUpdate, body, "E_BODY_INVALID", "allocation")
    return found


def read_shares(weights: list[str]) -> dict[str, Decimal]:
    """Read shares as `equities=0.3`, by world. Raises QmtlError (E_BODY_INVALID)."""
    found = dict[str, Decimal]()
    for text in weights:
        name, sign, number = text.partition("=")
        try:
            weight = Decimal(number)
        except InvalidOperation:
            sign = ""
        if not sign or not name:
            raise QmtlError("E_BODY_INVALID", f"{text[:40]!r} is no share", "write WORLD=0.3")
        if name in found:
            raise QmtlError("E_BODY_INVALID", f"{name[:64]} is named twice", "give each world one share")
        found[name] = weight
    return found


def read_rules(file: Path | None, lot: str | None) -> dict[str, Any] | None:
    """Read the rules of instruments; None: those of the worlds. (Any: YAML.) Raises QmtlError."""
    found: dict[str, Any] = {}
    if file is not None:
        text = read_file(file, "E_BODY_INVALID", "file with the rules of instruments")
        found = mapping_of(text, "E_BODY_INVALID", "instruments", "see docs/capital.md for an example")
    if file is None and lot is None:
        return None
    return {**({"lot": lot} if lot else {"lot": "1"}), **found}


def _rules_of(client: GatewayClient, worlds: Iterable[str]) -> dict[str, Any]:
    """Return the rules that the worlds themselves have. (Any: JSON.) Raises QmtlError (E_BODY_INVALID)."""
    found = {world_id: client.world(world_id).spec.instruments for world_id in sorted(worlds)}
    rules = next(iter(found.values()))
    if any(item != rules for item in found.values()):
        raise QmtlError(
            "E_BODY_INVALID",
            f"{', '.join(found)} have different rules of instruments",
            "give those of the plan: --instruments FILE",
        )
    body: dict[str, Any] = rules.json_dict()
    return {**body, "lot": body.get("lot") or str(DEFAULT_LOT)}


def _request(
    client: GatewayClient, present: AllocationSnapshot, update: AllocationUpdate, rules: dict[str, Any]
) -> MultiWorldRebalanceRequest:
    named = {item.world_id for item in update.allocations}
    before = [item for item in present.allocations if item.world_id in named]
    held = [(world_id, item) for world_id in sorted(named) for item in client.positions(world_id)]
    marks = _marks(item for _, item in held)
    positions = [
        {
            "world_id": world_id,
            "strategy_id": item.strategy_id,
            "venue": item.account,
            "symbol": item.symbol,
            "quantity": item.position.quantity,
            "mark": marks[item.account, item.symbol],
        }
        for world_id, item in held
    ]
    body = {
        "schema_version": 2,
        "worlds": changes_between(before, update.allocations),
        "positions": positions,
        "instruments": rules,
        "allocations_etag": present.etag,
    }
    found: MultiWorldRebalanceRequest = validated(
        MultiWorldRebalanceRequest, body, "E_BODY_INVALID", "rebalancing"
    )
    return found


def _marks(held: Iterable[HeldPosition]) -> dict[tuple[str, str], Decimal]:
    """Return the newest mark of each instrument: strategies that trade it at other times have other marks."""
    newest = sorted(held, key=lambda item: item.updated_at)
    return {(item.account, item.symbol): item.position.mark for item in newest}


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
