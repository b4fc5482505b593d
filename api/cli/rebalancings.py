"""`qmtl world rebalance-apply | -status | -approve | -abort`: carry out rebalancings."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from api.cli.allocations import Lot, Weights, changed_request, plan_text, read_rules, read_shares
from api.cli.connection import gateway, gateway_as
from api.cli.names import StrategiesByWorld
from api.cli.options import As, DryRun, Live, NewRun, Output, Reason, Yes, with_options
from api.cli.output import REFUSED, Format, ask, guarded, print_result, read_file, table
from api.cli.text.applies import approval_line
from qmtl_sdk.contracts.applies import ApprovalBody, RunId, approvers
from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.rebalance_runs import (
    RebalanceApply,
    RebalanceExecute,
    RebalanceStatus,
    RebalanceTrade,
)
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

WAIT_S = 30.0
"""Seconds to wait for the end of a run that has all its approvals, or was rejected."""


class RunIdBody(Model):
    """A run id alone, to be checked before it is sent."""

    run_id: RunId


_Run = Annotated[str, typer.Argument(metavar="RUN_ID", help="the rebalancing")]


@dataclass(frozen=True, kw_only=True)
class RebalanceApplyOptions:
    """Options of `qmtl world rebalance-apply`."""

    weights: Weights = None
    plan_file: Annotated[
        Path | None,
        typer.Option(help="the whole request as YAML or JSON, as POST /rebalancing/plan takes it"),
    ] = None
    instruments: Annotated[
        Path | None, typer.Option("--instruments", help="YAML with lots, ticks, costs (docs/capital.md)")
    ] = None
    lot: Lot = None
    time_limit: Annotated[
        float, typer.Option(help="seconds after which open orders are cancelled", min=1, max=86_400)
    ] = 600.0
    run_id: NewRun = None
    dry_run: DryRun = False
    reason: Reason = ""
    live: Live = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command("rebalance-apply")
@guarded
@with_options
def rebalance_apply(options: RebalanceApplyOptions) -> None:
    """Change shares of the capital: print the plan, request the run, and follow it to its end.

    Other people approve it. Then the worlds are locked, their shares change, and the plan's orders are sent:
    reductions first.
    """
    run_id = options.run_id or f"rebalance-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    with gateway_as(options.as_name) as client:
        if options.plan_file is not None and options.weights:
            raise QmtlError(
                "E_BODY_INVALID", "shares are given twice", "give WORLD=SHARE or --plan-file, not both"
            )
        if options.run_id and (known := _known_run(client, options)) is not None:
            print_run(client, options.output, known)
            _require_carried_out(known)
            return
        if options.plan_file is not None:
            text = read_file(options.plan_file, "E_BODY_INVALID", "rebalancing")
            body = mapping_of(text, "E_BODY_INVALID", "rebalancing", "see docs/capital.md for an example")
        elif options.weights:
            wanted = changed_request(client, options.weights, read_rules(options.instruments, options.lot))
            body = wanted.json_dict()
        else:
            raise QmtlError(
                "E_BODY_INVALID", "no share is given", "such as: qmtl world rebalance-apply equities=0.2"
            )
        body = {
            "request": {**body, "run_id": run_id},
            "reason": options.reason,
            "time_limit_s": options.time_limit,
        }
        request: RebalanceApply = validated(RebalanceApply, body, "E_BODY_INVALID", "rebalancing")
        plan = client.plan_rebalancing(request.request)
        request = request.model_copy(update={"etag": plan.etag})
        if options.dry_run:
            shown = client.execute_rebalancing(RebalanceExecute.model_validate(request.json_dict()))
            names = StrategiesByWorld(client)
            print_result(
                options.output,
                plan.json_dict(),
                lambda: [*plan_text(plan), "", trades_table(shown.trades, names)],
            )
            return
        found = client.apply_rebalancing(request, options.live)
        if not found.approvals_required and found.outcome is None:
            found = client.rebalancing(found.run_id, wait_s=WAIT_S)
        print_run(client, options.output, found, [*plan_text(plan), ""])
    _require_carried_out(found)


def _require_carried_out(found: RebalanceStatus) -> None:
    """Exit as refused where a run has ended before it changed anything."""
    if found.outcome in ("rolled_back", "aborted"):
        raise typer.Exit(REFUSED)


def _known_run(client: GatewayClient, options: RebalanceApplyOptions) -> RebalanceStatus | None:
    """Return the run of the given id where it is what the command asks for; None where there is none.

    Raises QmtlError (E_RUN_ID_REUSED).
    """
    assert options.run_id is not None
    validated(RunIdBody, {"run_id": options.run_id}, "E_BODY_INVALID", "rebalancing")
    if not options.weights and options.plan_file is None:
        return None  # which says what is missing
    try:
        known = client.rebalancing(options.run_id, wait_s=WAIT_S if options.weights else 0.0)
    except QmtlError as error:
        if error.code == "E_REBALANCE_UNKNOWN":
            return None
        raise
    given = read_shares(options.weights or [])
    planned = {name: plan.after for name, plan in known.plan.per_world.items()} if known.plan else {}
    if options.plan_file is None and given != planned:
        raise QmtlError(
            "E_RUN_ID_REUSED",
            f"{options.run_id} is that of another rebalancing: {known.title}",
            "choose another run id",
        )
    return known


@app.command("rebalance-status")
@guarded
def rebalance_status(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN_ID]", help="one run, with its plan, trades and report")
    ] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait until it has ended", min=0, max=60)] = 0.0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="how many to list")] = 20,
    output: Output = Format.TEXT,
) -> None:
    """List rebalancings, newest first; or show one in full."""
    with gateway() as client:
        if run_id is not None:
            one = client.rebalancing(run_id, wait_s=wait)
            print_run(client, output, one)
            return
        found = client.rebalancings(limit)
    rows = [
        [item.run_id, item.title, item.requested_by, f"{item.requested_at:%Y-%m-%d %H:%M:%S}", item.waits_for]
        for item in found
    ]
    header = ["run", "what", "requested by", "when (UTC)", "state"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "there was no rebalancing yet",
    )


@dataclass(frozen=True, kw_only=True)
class RebalanceApproveOptions:
    """Options of `qmtl world rebalance-approve`."""

    run_id: _Run
    reject: Annotated[bool, typer.Option("--reject", help="reject it: it ends and changes nothing")] = False
    reason: Reason = ""
    live: Live = False
    yes: Yes = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command("rebalance-approve")
@guarded
@with_options
def rebalance_approve(options: RebalanceApproveOptions) -> None:
    """Approve a rebalancing, after showing its plan. Nobody approves their own request."""
    run_id = options.run_id
    with gateway_as(options.as_name) as client:
        found = client.rebalancing(run_id)
        body = ApprovalBody(reason=options.reason, etag=found.plan.etag if found.plan else "")
        if options.reject:
            client.reject_rebalancing(run_id, body)
        else:
            if not options.yes:
                print_run(client, options.output, found)
                ask(f"approve {run_id}?", options.output)
            client.approve_rebalancing(run_id, body, options.live)
        found = client.rebalancing(run_id)
        if options.reject or len(approvers(found.approvals)) >= found.approvals_required:
            found = client.rebalancing(run_id, wait_s=WAIT_S)
        print_run(client, options.output, found)
    if not options.reject:
        _require_carried_out(found)


@app.command("rebalance-abort")
@guarded
def rebalance_abort(
    run_id: _Run, reason: Reason = "", as_name: As = None, output: Output = Format.TEXT
) -> None:
    """End a rebalancing at any point: open orders are cancelled, what was filled stays."""
    with gateway_as(as_name) as client:
        found = client.abort_rebalancing(run_id, reason)
        print_run(client, output, found)


def print_run(
    client: GatewayClient, output: Format, found: RebalanceStatus, before: Sequence[object] = ()
) -> None:
    """Print a run, for people after `before`."""
    names = StrategiesByWorld(client)
    print_result(output, found.json_dict(), lambda: [*before, *run_text(found, names)])


def run_text(found: RebalanceStatus, names: StrategiesByWorld) -> list[object]:
    """Describe a run: its state, approvals, trades and report."""
    lines: list[object] = [f"{found.run_id}: {found.title}: {found.waits_for}"]
    lines += [approval_line(item) for item in found.approvals]
    if found.state in ("requested", "approval") and not found.aborted_by and found.approvals_required:
        lines.append(
            f"another person approves it: qmtl world rebalance-approve {found.run_id} "
            "(on this machine, to try it: --as ana)"
        )
        if not found.trades:
            lines.append(
                "no position changes: approved are the shares, by which targets are sized from then on"
            )
    lines.append(trades_table(found.trades, names))
    if found.report is not None:
        report = found.report
        lines.append(
            f"{report.filled} of {report.orders} orders filled, {report.crossed} crossings without an "
            f"order; {report.missing_notional:.2f} of {report.turnover:.2f} missing"
        )
    return lines


def trades_table(trades: Sequence[RebalanceTrade], names: StrategiesByWorld) -> object:
    """Describe what each strategy's position changes by, and what came of it."""
    rows = [
        [
            item.world_id,
            names[item.world_id][item.strategy_id],
            f"{item.symbol} ({item.account})",
            f"{item.quantity:f}",
            f"{item.crossed:f}" if item.crossed else "",
            f"{item.filled:f}",
            item.state,
            item.reason,
        ]
        for item in trades
    ]
    header = ["world", "strategy", "symbol", "ordered", "crossed", "filled", "state", "why"]
    return table(header, rows) if rows else "no position changes"
