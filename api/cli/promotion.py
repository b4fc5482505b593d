"""`qmtl world promote | promotions`: take one strategy to dryrun or live."""

import time
from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as
from api.cli.names import SHORT_ID
from api.cli.options import As, Live, Output, Reason, StrategyArgument, WorldArgument, with_options
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.promotions import promotion_text
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.domains import stage_of
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

CHECK_LIMIT_S = 10.0
"""Seconds to wait until a new promotion has checked its conditions once."""


@dataclass(frozen=True, kw_only=True)
class PromoteOptions:
    """Options of `qmtl world promote`."""

    world: WorldArgument
    strategy: StrategyArgument
    to: Annotated[str, typer.Option(help="how far: dryrun or live")] = "dryrun"
    end: Annotated[bool, typer.Option("--end", help="end the promotion that is under way")] = False
    reason: Reason = ""
    live: Live = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def promote(options: PromoteOptions) -> None:
    """Promote a strategy stage by stage: wait for the policy's conditions, then request an apply.

    Other people approve each apply.
    """
    world, strategy = options.world, options.strategy
    with gateway_as(options.as_name) as client:
        if options.end:
            strategy_id = client.explain(world, strategy).strategy_id
            found = client.end_promotion(world, strategy_id, options.reason)
        else:
            body = {"strategy": strategy, "to": options.to, "reason": options.reason}
            request = validated(PromotionRequest, body, "E_BODY_INVALID", "request")
            found = _once_checked(client, client.promote(world, request, options.live))
    print_result(options.output, found.json_dict(), lambda: promotion_text(found))


@app.command()
@guarded
def promotions(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """List the promotions that are under way in a world, and what each waits for."""
    with gateway() as client:
        found = client.promotions(world)
    rows = [
        [
            item.progress.label if item.progress else item.strategy_id[:SHORT_ID],
            item.to,
            item.requested_by,
            stage_of(item.progress.stage) if item.progress else "",
            item.waits_for,
        ]
        for item in found
    ]
    header = ["strategy", "to", "requested by", "stage", "waits for"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else f"no promotion is under way in {world}",
    )


def _once_checked(client: GatewayClient, found: PromotionView) -> PromotionView:
    """Return a new promotion once it has checked its conditions, or as it is after CHECK_LIMIT_S."""
    deadline = time.monotonic() + CHECK_LIMIT_S
    while not found.waits_for and time.monotonic() < deadline:
        time.sleep(0.05)
        found = client.promotion(found.world_id, found.strategy_id)
    return found
