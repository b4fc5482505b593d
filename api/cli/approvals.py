"""`qmtl world applies | approve | reject | abort`: read applies and decide about them."""

from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as
from api.cli.options import (
    As,
    Live,
    Output,
    Reason,
    RunArgument,
    RunOrChangeArgument,
    WorldArgument,
    Yes,
    with_options,
)
from api.cli.output import Format, ask, guarded, print_result, table
from api.cli.text.applies import apply_text, change_text, plan_text
from qmtl_sdk.contracts.applies import CHANGE_PREFIX, ApplyStatus, ApprovalBody, approvers
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


@dataclass(frozen=True, kw_only=True)
class ApproveOptions:
    """Options of `qmtl world approve`."""

    world: WorldArgument
    run_id: RunOrChangeArgument
    reason: Reason = ""
    live: Live = False
    yes: Yes = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def approve(options: ApproveOptions) -> None:
    """Approve an apply or a rule change, after showing it. Nobody approves their own request."""
    world, run_id = options.world, options.run_id
    with gateway_as(options.as_name) as client:
        if run_id.startswith(CHANGE_PREFIX):
            _approve_change(client, options)
            return
        plan = client.apply_status(world, run_id).plan
        if not options.yes:
            print_result(Format.TEXT, None, lambda: plan_text(plan))
            ask(f"approve {run_id} of {world}?", options.output)
        client.approve(world, run_id, ApprovalBody(reason=options.reason, etag=plan.etag), options.live)
        found = _after_approval(client, world, run_id)
    shown = plan_text(plan) if options.yes else []
    print_result(options.output, found.json_dict(), lambda: [*shown, "", *apply_text(found)])


@app.command()
@guarded
def reject(
    world: WorldArgument,
    run_id: RunOrChangeArgument,
    reason: Reason = "",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Reject an apply or a rule change: it ends and changes nothing."""
    with gateway_as(as_name) as client:
        if run_id.startswith(CHANGE_PREFIX):
            change = client.reject_change(world, run_id, reason)
            print_result(output, change.json_dict(), lambda: change_text(change))
            return
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


@app.command()
@guarded
def changes(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """List changes of the world's rules that wait for approvals, or did."""
    with gateway() as client:
        found = client.changes(world)
    lines = [line for change in found for line in change_text(change)]
    print_result(output, [item.json_dict() for item in found], lambda: lines or "no change has waited")


def _approve_change(client: GatewayClient, options: ApproveOptions) -> None:
    """Show a change of the rules, ask, and approve it."""
    world, change_id = options.world, options.run_id
    if not options.yes:
        waiting = [item for item in client.changes(world) if item.change_id == change_id]
        print_result(Format.TEXT, None, lambda: [line for item in waiting for line in change_text(item)])
        ask(f"approve {change_id} of {world}?", options.output)
    change = client.approve_change(world, change_id, options.reason, options.live)
    print_result(options.output, change.json_dict(), lambda: change_text(change))


def _after_approval(client: GatewayClient, world: str, run_id: str) -> ApplyStatus:
    """Return the apply: at its end where it has all approvals, otherwise as it waits for the next one."""
    found = client.apply_status(world, run_id)
    if len(approvers(found.approvals)) < found.plan.approval.required:
        return found
    return client.apply_status(world, run_id, wait_s=WAIT_S)
