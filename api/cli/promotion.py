"""`qmtl world promote | promotions`: one strategy on its way to dryrun or live."""

import time
from typing import Annotated, Any

import typer

from api.cli.operate import As, Live, Reason, approve_with, speaking
from api.cli.output import Format, Output, guarded, print_result, table
from api.cli.world import WorldArgument, gateway
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.promotions import PromotionRequest, PromotionView
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()
LOOK_S = 10.0


@app.command()
@guarded
def promote(
    world: WorldArgument,
    strategy: Annotated[str, typer.Argument(help="its name, its strategy_id, or the beginning of that")],
    to: Annotated[str, typer.Option(help="dryrun or live: how far it shall come")] = "dryrun",
    end: Annotated[bool, typer.Option("--end", help="end the promotion that is under way")] = False,
    reason: Reason = "",
    live: Live = False,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Bring a strategy to dryrun or live, stage by stage: waits for what the policy asks for, then asks for an apply, which other people approve."""
    with speaking(name) as client:
        if end:
            found = client.end_promotion(world, client.explain(world, strategy).strategy_id, reason)
        else:
            request = validated(
                PromotionRequest,
                {"strategy": strategy, "to": to, "reason": reason},
                "E_BODY_INVALID",
                "request",
            )
            found = _looked(client, client.promote(world, request, live))
    print_result(output, found.json_dict(), lambda: promotion_text(found))


@app.command()
@guarded
def promotions(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """The promotions that are under way in a world, and what each waits for."""
    with gateway() as client:
        found = client.promotions(world)
    rows = [
        [
            item.progress.label if item.progress else item.strategy_id[:17],
            item.to,
            item.requested_by,
            item.progress.stage if item.progress else "",
            item.waits_for,
        ]
        for item in found
    ]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: (
            table("", ["strategy", "to", "asked by", "stage", "waits for"], rows)
            if rows
            else f"no promotion is under way in {world}"
        ),
    )


def _looked(client: GatewayClient, found: PromotionView) -> PromotionView:
    """A promotion that was asked for a moment ago, once it has looked at its conditions."""
    deadline = time.monotonic() + LOOK_S
    while not found.waits_for and time.monotonic() < deadline:
        time.sleep(0.05)
        found = client.promotion(found.world_id, found.strategy_id)
    return found


def promotion_text(found: PromotionView) -> list[Any]:
    progress = found.progress
    lines: list[Any] = [
        f"{progress.label if progress else found.strategy_id[:17]} of {found.world_id} to {found.to}, asked for by {found.requested_by}"
    ]
    if progress is not None and progress.target:
        rows = [
            [condition.name, "holds" if condition.met else "is missing", condition.detail]
            for condition in progress.conditions
        ]
        lines.append(table(f"for {progress.target}; it is in {progress.stage}", ["condition", "", ""], rows))
    lines.append(f"{found.outcome or 'waits'}: {found.waits_for}")
    if found.apply_run:
        lines.append(approve_with(found.world_id, found.apply_run))
    return [*lines, *([f"  {found.workflow_url}"] if found.workflow_url else [])]
