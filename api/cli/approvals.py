"""`qmtl world applies | approve | reject | abort`: read applies and decide about them."""

from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as
from api.cli.options import As, Live, Output, Reason, RunArgument, WorldArgument
from api.cli.output import Format, guarded, print_result, table
from api.cli.text.applies import apply_text, plan_text
from qmtl_sdk.contracts.applies import ApplyStatus, ApprovalBody, approvers
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

WAIT_S = 30.0
"""Seconds to wait for the end of an apply that has all its approvals, or was rejected."""


@app.command()
@guarded
def applies(
    world: WorldArgument,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN_ID]", help="one apply, with its plan, approvals, steps and acknowledgements"
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="how many to list")] = 20,
    output: Output = Format.TEXT,
) -> None:
    """List the applies of a world, newest first; or show one in full."""
    with gateway() as client:
        if run_id is not None:
            one = client.apply_status(world, run_id)
            print_result(output, one.json_dict(), lambda: [*plan_text(one.plan), "", *apply_text(one)])
            return
        found = client.applies(world, limit)
    rows = [
        [
            item.run_id,
            item.plan.title,
            item.requested_by,
            f"{item.requested_at:%Y-%m-%d %H:%M:%S}",
            item.state,
            item.waits_for,
        ]
        for item in found
    ]
    header = ["run", "what", "requested by", "when (UTC)", "state", "waits for"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else f"{world} has had no apply yet",
    )


@app.command()
@guarded
def approve(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    live: Live = False,
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Approve an apply. Nobody approves their own request."""
    with gateway_as(as_name) as client:
        plan = client.apply_status(world, run_id).plan
        client.approve(world, run_id, ApprovalBody(reason=reason, etag=plan.etag), live)
        found = _after_approval(client, world, run_id)
    print_result(output, found.json_dict(), lambda: [*plan_text(plan), "", *apply_text(found)])


@app.command()
@guarded
def reject(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Reject an apply: it ends and changes nothing."""
    with gateway_as(as_name) as client:
        client.reject(world, run_id, ApprovalBody(reason=reason))
        found = client.apply_status(world, run_id, wait_s=WAIT_S)
    print_result(output, found.json_dict(), lambda: apply_text(found))


@app.command()
@guarded
def abort(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """End an apply before it switches anything, also while it waits for approvals or open orders."""
    with gateway_as(as_name) as client:
        found = client.abort(world, run_id, reason)
    print_result(output, found.json_dict(), lambda: apply_text(found))


def _after_approval(client: GatewayClient, world: str, run_id: str) -> ApplyStatus:
    """Return the apply: at its end where it has all approvals, otherwise as it waits for the next one."""
    found = client.apply_status(world, run_id)
    if len(approvers(found.approvals)) < found.plan.approval.required:
        return found
    return client.apply_status(world, run_id, wait_s=WAIT_S)
