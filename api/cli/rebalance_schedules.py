"""`qmtl world rebalance-schedule set | list | remove`: propose shares of the capital at regular times."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from api.cli.allocations import read_share
from api.cli.connection import gateway, gateway_as
from api.cli.options import As, Live, Output, Reason, with_options
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.rebalance_schedules import (
    Firing,
    RebalanceSchedule,
    RebalanceScheduleBody,
    ScheduleName,
)

app = typer.Typer()
commands = typer.Typer(
    help="Schedules of rebalancings: shares are proposed at regular times.", no_args_is_help=True
)
app.add_typer(commands, name="rebalance-schedule")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="the schedule")]


class NameBody(Model):
    """A name alone, to be checked before it becomes a part of an address."""

    name: ScheduleName


@dataclass(frozen=True, kw_only=True)
class SetScheduleOptions:
    """Options of `qmtl world rebalance-schedule set`."""

    name: _Name
    worlds: Annotated[
        list[str],
        typer.Argument(
            metavar="WORLD[=TARGET[:WIDTH]]…",
            help="its worlds: equities=0.5:0.05 is a band from 0.45 to 0.55, equities=0.5 a given share",
        ),
    ]
    method: Annotated[
        str | None,
        typer.Option(help="given, drift_bands or equal_risk; without it, what the worlds are written for"),
    ] = None
    every: Annotated[str, typer.Option(help="the time between two firings, such as 12h, 1d or 1w")] = "1d"
    tolerance: Annotated[
        str, typer.Option(help="request nothing unless a share differs by more than this")
    ] = "0.01"
    cap: Annotated[
        str | None, typer.Option(help="the largest share that drift_bands and equal_risk propose")
    ] = None
    paused: Annotated[bool, typer.Option("--paused", help="keep it, and let it propose nothing")] = False
    reason: Reason = ""
    live: Live = False
    as_name: As = None
    output: Output = Format.TEXT


@commands.command("set")
@guarded
@with_options
def set_schedule(options: SetScheduleOptions) -> None:
    """Set a schedule, or replace it. It requests rebalancings in your name: other people approve them."""
    worlds = [_world(text) for text in options.worlds]
    body = {
        "method": options.method or _method(worlds),
        "worlds": worlds,
        "cap": options.cap and read_share(options.cap, options.cap, "write --cap 0.6"),
        "tolerance": read_share(options.tolerance, options.tolerance, "write --tolerance 0.01"),
        "every": options.every,
        "paused": options.paused,
        "reason": options.reason,
    }
    wanted: RebalanceScheduleBody = validated(RebalanceScheduleBody, body, "E_BODY_INVALID", "schedule")
    _require_name(options.name)
    with gateway_as(options.as_name) as client:
        found = client.set_rebalance_schedule(options.name, wanted, options.live)
    print_result(options.output, found.json_dict(), lambda: _text(found))


@commands.command("list")
@guarded
def list_schedules(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="one schedule in full")] = None,
    output: Output = Format.TEXT,
) -> None:
    """List schedules of rebalancings, with what their newest firings decided; or show one in full."""
    with gateway() as client:
        if name is not None:
            _require_name(name)
            one = client.rebalance_schedule(name)
            print_result(output, one.json_dict(), lambda: _text(one))
            return
        found = client.rebalance_schedules()
    rows = [
        [
            item.name,
            item.body.method,
            ", ".join(item.body.world_ids),
            format_duration(item.body.every),
            item.set_by,
            _state(item),
            _next_text(item),
            _firing_text(item.newest) if item.newest else "not fired yet",
        ]
        for item in found
    ]
    header = ["name", "method", "worlds", "every", "set by", "state", "next (UTC)", "newest firing"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "there is no schedule of rebalancings",
    )


@commands.command("remove")
@guarded
def remove_schedule(name: _Name, as_name: As = None, output: Output = Format.TEXT) -> None:
    """Remove a schedule. What it has requested stays: qmtl world rebalance-abort ends a run."""
    _require_name(name)
    with gateway_as(as_name) as client:
        client.remove_rebalance_schedule(name)
    print_result(output, {"name": name, "removed": True}, lambda: f"{name} is removed")


def _require_name(name: str) -> None:
    """Raise QmtlError (E_BODY_INVALID) where no schedule can have this name."""
    validated(NameBody, {"name": name}, "E_BODY_INVALID", "schedule")


def _world(text: str) -> dict[str, Any]:
    """Read a world as `equities`, `equities=0.5` or `equities=0.5:0.05`. (Any: its fields.)"""
    name, sign, band = text.partition("=")
    target, colon, width = band.partition(":")
    if (sign and not target) or (colon and not width):
        raise QmtlError("E_BODY_INVALID", f"{text[:40]!r} is no world of a schedule", "write WORLD=0.5:0.05")
    remedy = "write WORLD=0.5:0.05, shares between 0 and 1"
    given = (("target", target), ("width", width))
    return {"world_id": name, **{field: read_share(value, text, remedy) for field, value in given if value}}


def _method(worlds: list[dict[str, Any]]) -> str:
    """Return the method for which worlds are written. (Any: fields of a world.)"""
    if any("width" in item for item in worlds):
        return "drift_bands"
    return "given" if any("target" in item for item in worlds) else "equal_risk"


def _state(found: RebalanceSchedule) -> str:
    if found.body.paused:
        return "paused"
    return "runs" if found.is_running else "runs when Temporal is back"


def _next_text(found: RebalanceSchedule) -> str:
    return "-" if found.body.paused else f"{found.body.next_firing(datetime.now(UTC)):%Y-%m-%d %H:%M}"


def _firing_text(firing: Firing) -> str:
    why = firing.run_id or firing.reason
    return f"{firing.at:%Y-%m-%d %H:%M:%S} {firing.outcome}{f': {why}' if why else ''}"


def _text(found: RebalanceSchedule) -> list[object]:
    """Describe a schedule, and what its newest firing decided."""
    body = found.body
    rows = [
        [
            item.world_id,
            "" if item.target is None else f"{item.target:f}",
            "" if item.width is None else f"{item.width:f}",
        ]
        for item in body.worlds
    ]
    cap = "" if body.method == "given" else f", cap {body.largest:f}"
    lines: list[object] = [
        f"{found.name}: {body.method} every {format_duration(body.every)}, tolerance {body.tolerance:f}"
        f"{cap}; set by {found.set_by}; {_state(found)}; next (UTC): {_next_text(found)}",
        table(["world", "target", "width"], rows),
    ]
    firing = found.newest
    if firing is None:
        return [*lines, "not fired yet"]
    lines.append(f"{firing.at:%Y-%m-%d %H:%M:%S} UTC: {firing.outcome}: {firing.reason}")
    if firing.shares:
        shares = [[item.world_id, f"{item.before:f}", f"{item.after:f}", item.why] for item in firing.shares]
        lines.append(table(["world", "share", "proposed", "why"], shares))
    if firing.run_id:
        lines.append(f"its run: qmtl world rebalance-status {firing.run_id}")
    return lines
