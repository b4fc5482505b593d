"""`qmtl world apply | rollback`: request an apply."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.connection import gateway_as
from api.cli.names import strategy_ids
from api.cli.options import As, DryRun, Live, NewRun, Output, Reason, WorldArgument, with_options
from api.cli.output import Format, guarded, print_result, read_file
from api.cli.text.applies import apply_text, plan_text
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

WAIT_S = 30.0
"""Seconds to wait for the end of an apply that needs no approval."""


@dataclass(frozen=True, kw_only=True)
class ApplyOptions:
    """Options of `qmtl world apply`."""

    world: WorldArgument
    to: Annotated[
        str | None, typer.Option(help="dryrun or live; without it, the next stage of the policy")
    ] = None
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "-s",
            help="only this strategy, by name, strategy_id or its beginning; may be repeated",
        ),
    ] = None
    run_id: NewRun = None
    plan_file: Annotated[
        Path | None,
        typer.Option(
            help="the request as YAML: `to`, `strategies` (a list), `weights` (0 to 1 by strategy), `reason`"
        ),
    ] = None
    dry_run: DryRun = False
    reason: Reason = ""
    live: Live = False
    as_name: As = None
    output: Output = Format.TEXT


@dataclass(frozen=True, kw_only=True)
class RollbackOptions:
    """Options of `qmtl world rollback`."""

    world: WorldArgument
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="RUN_ID",
            help="restore the world to what it was before this apply; without it, the newest completed one",
        ),
    ] = None
    run_id: NewRun = None
    dry_run: DryRun = False
    reason: Reason = ""
    live: Live = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def apply(options: ApplyOptions) -> None:
    """Move the strategies that pass to the next stage: print the plan and request the apply.

    Other people approve it.
    """
    body: dict[str, Any] = {
        "run_id": options.run_id or _new_run_id("apply"),
        "to": options.to,
        "strategies": options.strategy or [],
        "reason": options.reason,
    }
    if options.plan_file is not None:
        text = read_file(options.plan_file, "E_BODY_INVALID", "request")
        body |= mapping_of(text, "E_BODY_INVALID", "request", "write to:, strategies:, weights: or reason:")
    request = validated(ApplyRequest, body, "E_BODY_INVALID", "request")
    with gateway_as(options.as_name) as client:
        _send(client, options.world, _with_ids(client, options.world, request), options)


@app.command()
@guarded
@with_options
def rollback(options: RollbackOptions) -> None:
    """Restore the world to what it was before an apply. Moving to an earlier stage needs no approval."""
    world = options.world
    with gateway_as(options.as_name) as client:
        target = options.to or _newest_completed(client, world)
        run_id = options.run_id or _new_run_id("back")
        _send(client, world, ApplyRequest(run_id=run_id, rollback_of=target, reason=options.reason), options)


def _send(
    client: GatewayClient, world: str, request: ApplyRequest, options: ApplyOptions | RollbackOptions
) -> None:
    """Print the plan; unless it is a dry run, request the apply and print where it is."""
    plan = client.plan_apply(world, request)
    if options.dry_run:
        print_result(options.output, plan.json_dict(), lambda: plan_text(plan))
        return
    found = client.apply(world, request, options.live)
    if not found.plan.approval.required:
        found = client.apply_status(world, request.run_id, wait_s=WAIT_S)
    print_result(options.output, found.json_dict(), lambda: [*plan_text(found.plan), "", *apply_text(found)])


def _with_ids(client: GatewayClient, world: str, request: ApplyRequest) -> ApplyRequest:
    """Replace the names and short ids of strategies. Raises QmtlError (E_STRATEGY_UNKNOWN)."""
    ids = strategy_ids(client, world, (*request.strategies, *request.weights))
    return request.model_copy(
        update={
            "strategies": tuple(ids[text] for text in request.strategies),
            "weights": {ids[text]: weight for text, weight in request.weights.items()},
        }
    )


def _newest_completed(client: GatewayClient, world: str) -> str:
    found = next((item.run_id for item in client.applies(world, 100) if item.outcome == "completed"), None)
    if found is None:
        raise QmtlError(
            "E_APPLY_EMPTY",
            f"{world} has no completed apply to roll back",
            f"qmtl world applies {world} lists the applies",
        )
    return found


def _new_run_id(kind: str) -> str:
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
