"""`qmtl world apply | applies | approve | reject | abort | rollback | archive | halt | resume | status | explain | override | audit | orders | allow-live`: what an operator does."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.output import Format, Output, guarded, print_result, read, table
from api.cli.world import WorldArgument, gateway
from qmtl_sdk.contracts.applies import ApplyRequest, ApplyStatus, ApprovalBody, GateStatus, approvers
from qmtl_sdk.contracts.documents import mapping_of, validated
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import REFUSALS, Refusal
from qmtl_sdk.contracts.plans import ApplyPlan
from qmtl_sdk.contracts.worlds import EdgeOverride, WorldUpdate
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings

app = typer.Typer()
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN_ID", help="the apply, as qmtl world applies lists it")
]
As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="speak with the token in HOME/tokens/NAME; a local stack has `ana` and `ben`, to try what takes two people",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="kept in the audit trail")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and do nothing")]
NewRun = Annotated[
    str | None, typer.Option("--run-id", help="a name of your own: asked for again it is the same apply")
]
Live = Annotated[
    bool, typer.Option("--live", help="say that this leads to live trading; needed for what does")
]
WAIT_S = 30.0


@contextmanager
def speaking(name: str | None) -> Iterator[GatewayClient]:
    """The Gateway, as the person whose token lies under that name."""
    with gateway() as client:
        if name is None:
            yield client
            return
        path = settings().local_token_path(name)
        try:
            token = path.read_text().strip()
        except OSError as error:
            there = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
            raise QmtlError(
                "E_TOKEN_MISSING",
                f"there is no token {name} in {path.parent}",
                f"there are: {', '.join(there) or 'none'}",
            ) from error
        with GatewayClient(client.url, token) as other:
            yield other


@app.command()
@guarded
def apply(
    world: WorldArgument,
    to: Annotated[
        str | None, typer.Option(help="dryrun or live; the next stage of the policy where it is left out")
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", "-s", help="only this strategy_id; several times for several"),
    ] = None,
    run_id: NewRun = None,
    plan_file: Annotated[
        Path | None, typer.Option(help="the request as YAML: to, strategies, weights, reason")
    ] = None,
    dry_run: DryRun = False,
    reason: Reason = "",
    live: Live = False,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Bring the strategies that pass to the next stage: prints the plan, then waits for approvals elsewhere."""
    body: dict[str, Any] = {
        "run_id": run_id or _new_run(),
        "to": to,
        "strategies": strategy or [],
        "reason": reason,
    }
    if plan_file is not None:
        body |= mapping_of(
            read(plan_file, "E_BODY_INVALID", "request"),
            "E_BODY_INVALID",
            "request",
            "write to:, strategies:, weights: or reason:",
        )
    _ask(world, validated(ApplyRequest, body, "E_BODY_INVALID", "request"), dry_run, live, name, output)


@app.command()
@guarded
def rollback(
    world: WorldArgument,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="RUN_ID",
            help="back to how the world was before this apply; the newest completed one where it is left out",
        ),
    ] = None,
    run_id: NewRun = None,
    dry_run: DryRun = False,
    reason: Reason = "",
    live: Live = False,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Take back what an apply has done, and what came after it. Going down needs nobody's approval."""
    if to is None:
        with speaking(name) as client:
            to = next(
                (item.run_id for item in client.applies(world, 100) if item.outcome == "completed"), None
            )
        if to is None:
            raise QmtlError(
                "E_APPLY_EMPTY",
                f"{world} has no completed apply to roll back",
                "qmtl world applies W lists them",
            )
    _ask(
        world,
        ApplyRequest(run_id=run_id or _new_run("back"), rollback_of=to, reason=reason),
        dry_run,
        live,
        name,
        output,
    )


def _ask(
    world: str, request: ApplyRequest, dry_run: bool, live: bool, name: str | None, output: Format
) -> None:
    with speaking(name) as client:
        plan = client.plan_apply(world, request)
        if dry_run:
            print_result(output, plan.json_dict(), lambda: plan_text(plan))
            return
        found = client.apply(world, request, live)
        if not found.plan.approval.required:
            found = client.apply_status(world, request.run_id, wait_s=WAIT_S)
    print_result(output, found.json_dict(), lambda: [*plan_text(found.plan), "", *status_text(found)])


@app.command()
@guarded
def applies(
    world: WorldArgument,
    run_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[RUN_ID]", help="one of them, with its plan, approvals, steps, and who has heard"
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100)] = 20,
    output: Output = Format.TEXT,
) -> None:
    """The applies of a world, newest first; or one in full."""
    with gateway() as client:
        if run_id is not None:
            one = client.apply_status(world, run_id)
            print_result(output, one.json_dict(), lambda: [*plan_text(one.plan), "", *status_text(one)])
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
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: (
            table("", ["run", "what", "asked by", "when (UTC)", "state", "waits for"], rows)
            if rows
            else f"{world} has had no apply yet"
        ),
    )


@app.command()
@guarded
def approve(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    live: Live = False,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Agree to an apply. Its plan is printed first; nobody agrees to their own."""
    with speaking(name) as client:
        plan = client.apply_status(world, run_id).plan
        client.approve(world, run_id, ApprovalBody(reason=reason, etag=plan.etag), live)
        found = _moved_on(client, world, run_id)
    print_result(output, found.json_dict(), lambda: [*plan_text(plan), "", *status_text(found)])


@app.command()
@guarded
def reject(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Say no to an apply: it ends, and nothing has changed."""
    with speaking(name) as client:
        client.reject(world, run_id, ApprovalBody(reason=reason))
        found = client.apply_status(world, run_id, wait_s=WAIT_S)
    print_result(output, found.json_dict(), lambda: status_text(found))


@app.command()
@guarded
def abort(
    world: WorldArgument,
    run_id: RunArgument,
    reason: Reason = "",
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """End an apply before it has switched anything: also while it waits for approvals or for open orders."""
    with speaking(name) as client:
        found = client.abort(world, run_id, reason)
    print_result(output, found.json_dict(), lambda: status_text(found))


def _moved_on(client: GatewayClient, world: str, run_id: str) -> ApplyStatus:
    """After an approval: the apply at its end, or as it waits for the next person."""
    found = client.apply_status(world, run_id)
    stage, agreed = (
        found.plan.approval,
        approvers(found.approvals),
    )
    return client.apply_status(world, run_id, wait_s=WAIT_S) if len(agreed) >= stage.required else found


@app.command()
@guarded
def archive(
    world: WorldArgument,
    undo: Annotated[
        bool, typer.Option("--undo", help="take it back; its gate stays halted until it is resumed")
    ] = False,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Put a world away: it takes no submissions, no applies and no orders from then on, and keeps everything."""
    with speaking(name) as client:
        found = client.update_world(world, WorldUpdate(state="active" if undo else "archived"))
    print_result(
        output,
        found.json_dict(),
        lambda: (
            f"{world} is active again; qmtl world resume {world} opens its gate"
            if undo
            else f"{world} is archived"
        ),
    )


@app.command()
@guarded
def halt(world: WorldArgument, reason: Reason = "", name: As = None, output: Output = Format.TEXT) -> None:
    """Refuse every order of a world from now on, until someone resumes it."""
    with speaking(name) as client:
        found = client.halt(world, reason)
    print_result(output, found.json_dict(), lambda: gate_text(found))


@app.command()
@guarded
def resume(world: WorldArgument, reason: Reason = "", name: As = None, output: Output = Format.TEXT) -> None:
    """Lift a halt, or open a world that a failed apply has left frozen."""
    with speaking(name) as client:
        found = client.resume(world, reason)
    print_result(
        output,
        found,
        lambda: [
            f"lifted: {', '.join(found['lifted'])}",
            *gate_text(GateStatus.model_validate(found["gate"])),
        ],
    )


@app.command()
@guarded
def status(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Whether orders can pass, who trades, what is under way, and what the evidence was judged on."""
    with gateway() as client:
        gate, activation, applies = client.gate(world), client.activation(world), client.applies(world, 1)
        decisions, found, sessions = client.decisions(world), client.world(world), client.sessions(world)
        fingerprints = client.fingerprints(world)
    body = {
        "world": world,
        "gate": gate.json_dict(),
        "pinned_fingerprint": found.pinned_fingerprint,
        "fingerprints": fingerprints,
        "activation": [item.json_dict() for item in activation],
        "sessions": len(sessions),
        "apply": applies[0].json_dict() if applies else None,
        "decision": decisions[0].json_dict() if decisions else None,
    }

    def text() -> list[Any]:
        names = {item.strategy_id: item.name for item in decisions[0].strategies} if decisions else {}
        rows = [
            [
                names.get(item.strategy_id) or item.strategy_id[:17],
                "active" if item.active else "off",
                item.effective_mode or "",
                f"{item.weight:.4g}",
            ]
            for item in activation
        ]
        lines: list[Any] = gate_text(gate)
        lines.append(f"sessions   {len(sessions)} running")
        lines.append(
            f"data       judged on {', '.join(fingerprints) or 'nothing yet'}; pinned {found.pinned_fingerprint or 'nothing'}"
        )
        lines.append(
            f"apply      {applies[0].run_id}: {applies[0].waits_for}" if applies else "apply      none yet"
        )
        return [
            *lines,
            table("", ["strategy", "switched", "stage", "weight"], rows)
            if rows
            else "nothing is switched on",
        ]

    print_result(output, body, text)


@app.command()
@guarded
def explain(
    world: WorldArgument,
    strategy: Annotated[str, typer.Argument(help="its name, its strategy_id, or the beginning of that")],
    output: Output = Format.TEXT,
) -> None:
    """Where a strategy stands, and at which step of the decision it was left out and by what figure."""
    with gateway() as client:
        found = client.explain(world, strategy)
    print_result(output, found.json_dict(), lambda: list(found.lines))


@app.command()
@guarded
def override(
    world: WorldArgument,
    src: Annotated[
        str | None, typer.Argument(help="where the edge begins: a NodeID, or domain:backtest")
    ] = None,
    dst: Annotated[str | None, typer.Argument(help="where it ends: a NodeID, or domain:live")] = None,
    active: Annotated[
        bool, typer.Option("--open/--close", help="an edge to live is opened by an apply alone")
    ] = False,
    reason: Reason = "",
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """The edges of a world's graph that are closed or opened; with SRC and DST: close or open one."""
    with speaking(name) as client:
        if src is not None and dst is not None:
            client.override(
                world,
                validated(
                    EdgeOverride,
                    {"src": src, "dst": dst, "active": active, "reason": reason},
                    "E_BODY_INVALID",
                    "edge",
                ),
            )
        elif src is not None:
            raise QmtlError("E_BODY_INVALID", "an edge has two ends", "qmtl world override W SRC DST --close")
        found = client.overrides(world)
    rows = [[item.src, item.dst, "open" if item.active else "closed", item.reason] for item in found]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table("", ["from", "to", "edge", "why"], rows) if rows else "no edge is overridden",
    )


@app.command("allow-live")
@guarded
def allow_live(
    world: WorldArgument,
    allowed: Annotated[
        bool, typer.Option("--yes/--no", help="--no takes it away: live orders are refused from then on")
    ] = True,
    name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Let a world go live at all. Nothing goes live by this: policy, approvals and an apply are needed besides."""
    with speaking(name) as client:
        found = client.update_world(world, WorldUpdate(allow_live=allowed), live=allowed)
    print_result(
        output,
        found.json_dict(),
        lambda: f"{world} {'allows' if found.spec.allow_live else 'does not allow'} live",
    )


@app.command()
@guarded
def audit(
    world: WorldArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="follow the hash chain from its beginning")
    ] = False,
    after: Annotated[int, typer.Option(min=0, help="entries after this number")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 100,
    output: Output = Format.TEXT,
) -> None:
    """Who did what in a world, oldest first. --verify fails where an entry was changed or is missing."""
    with gateway() as client:
        found = client.audit(world, after, limit, verify)
    rows = [
        [
            str(item["number"]),
            item["at"][:19].replace("T", " "),
            item["actor"],
            item["action"],
            str(item["subject"])[:40],
            str(item["correlation_id"])[:24],
        ]
        for item in found["entries"]
    ]

    def text() -> list[Any]:
        lines: list[Any] = (
            [table("", ["no", "when (UTC)", "who", "what", "of", "run"], rows)]
            if rows
            else ["nothing beyond that"]
        )
        return [*lines, f"the chain is whole: {found['verified']} entries"] if verify else lines

    print_result(output, found, text)


@app.command()
@guarded
def orders(
    world: WorldArgument,
    after: Annotated[int, typer.Option(min=0, help="orders after this number of the log")] = 0,
    reason: Annotated[Refusal | None, typer.Option(help="only those refused for it")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000)] = 50,
    output: Output = Format.TEXT,
) -> None:
    """The orders of a world: what the fence said of each, and what became of it."""
    with gateway() as client:
        found = client.orders(world, after, limit, reason.value if reason else None)
    rows = [
        [
            str(item.seq),
            f"{item.at:%H:%M:%S}",
            item.order.strategy_id[:17],
            f"{item.order.side} {item.order.quantity} {item.order.symbol}",
            item.order.execution_domain.value,
            str(item.order.epoch),
            item.state,
            REFUSALS[item.reason]
            if item.reason
            else f"at {item.fill.price} by {item.fill.venue}"
            if item.fill
            else "",
        ]
        for item in found
    ]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: (
            table("", ["no", "when", "strategy", "order", "domain", "epoch", "state", "why"], rows)
            if rows
            else "no orders"
        ),
    )


def plan_text(plan: ApplyPlan) -> list[Any]:
    """Who goes where, and what will be done, stage by stage."""
    lines: list[Any] = [plan.title + (f": {plan.reason}" if plan.reason else "")]
    lines.append(table("", ["what", "before", "after"], [list(row) for row in plan.diff()]))
    lines += [f"left out: {item}" for item in plan.left_out]
    return [*lines, *(f"{number}. {step.explain()}" for number, step in enumerate(plan.steps, 1))]


def status_text(found: ApplyStatus) -> list[str]:
    """Where an apply is, what it waits for, and how it came there."""
    lines = [f"{found.run_id}: {found.waits_for}"]
    for item in found.approvals:
        said = {"approve": "approved", "reject": "rejected"}[item.verdict]
        lines.append(
            f"  {item.actor} {said}{f': {item.reason}' if item.reason else ''}{'' if item.counts else ' (straight to Temporal; does not count)'}"
        )
    for step in found.steps:
        seconds = ((step.ended or datetime.now(UTC)) - step.started).total_seconds()
        took = format_duration(seconds) if seconds >= 1 else f"{1000 * seconds:.0f} ms"
        lines.append(f"  {step.name:<10} {step.started:%H:%M:%S}  {took}{'' if step.ended else ' so far'}")
    missing = [
        f"{item.kind} {item.holder[:16]} ({item.phase})"
        for item in found.acks
        if item.at is None or item.late
    ]
    heard = sum(item.at is not None and not item.late for item in found.acks)
    if found.acks:
        late = f"; not in time: {', '.join(missing)}" if missing else ""
        lines.append(f"  heard by {heard} of {len(found.acks)}{late}")
    if found.outcome is None and found.state in ("requested", "approval") and found.plan.approval.required:
        lines.append(approve_with(found.world_id, found.run_id))
    return [*lines, *([f"  {found.workflow_url}"] if found.workflow_url else [])]


def approve_with(world: str, run_id: str) -> str:
    return f"  qmtl world approve {world} {run_id}   (another person; on this machine, to try it: --as ana)"


def gate_text(gate: GateStatus) -> list[Any]:
    state = (
        f"halted ({gate.halted})"
        if gate.halted
        else f"{gate.state} by {gate.held_by}"
        if gate.state != "open"
        else "open"
    )
    fresh = gate.decision_fresh_until
    age = (
        "none yet"
        if fresh is None
        else f"fresh until {fresh:%H:%M:%S} UTC"
        if fresh > datetime.now(UTC)
        else f"stale since {fresh:%Y-%m-%d %H:%M:%S} UTC: orders are refused; qmtl world decide {gate.world_id}"
    )
    refused = ", ".join(
        f"{count} {reason}" for reason, count in sorted(gate.orders.items()) if reason != "accepted"
    )
    return [
        f"gate       {state}, epoch {gate.epoch}",
        f"live       {'allowed' if gate.allow_live else 'not allowed'}, edge from backtest to live {'open' if gate.live_edge else 'closed'}",
        f"decision   {age}",
        f"orders     {gate.orders.get('accepted', 0)} accepted, {gate.open_orders} open{f'; refused: {refused}' if refused else ''}",
    ]


def _new_run(kind: str = "apply") -> str:
    return f"{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
