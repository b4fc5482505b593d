"""`qmtl world halt | resume | archive | allow-live`: open and close a world at once."""

from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import typer

from api.cli import early_halt
from api.cli.connection import gateway_as
from api.cli.early_halt import LIMIT_S, Halted, NotSentError
from api.cli.flatten import flattened, flattened_text
from api.cli.options import As, OneStrategy, Output, Reason, WorldArgument, with_options
from api.cli.output import Format, guarded, print_result
from api.cli.text.status import fence_text
from qmtl_sdk.contracts.applies import FenceStatus
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenResult
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.contracts.worlds import WorldUpdate

app = typer.Typer()


@dataclass(frozen=True)
class HaltOptions:
    """The arguments of `qmtl world halt`."""

    world: Annotated[str | None, typer.Argument(metavar="WORLD", show_default=False)] = None
    every: Annotated[bool, typer.Option("--all", help="every world")] = False
    strategy: OneStrategy = None
    flatten: Annotated[
        bool, typer.Option("--flatten", help="close what is held too, by orders that only reduce")
    ] = False
    reason: Reason = ""
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def halt(options: HaltOptions) -> None:
    """Refuse every order of a world, of all, or of one strategy, from now on, until someone resumes it.

    Where no Gateway carries it out within a second, the halt is written straight into the store.
    """
    world, strategy, as_name = options.world, options.strategy, options.as_name
    if (world is None) is not options.every:
        raise typer.BadParameter("name a world or give --all, one of the two")
    if options.every and strategy is not None:
        raise typer.BadParameter("name the world of the strategy: --all takes no strategy")
    reason = printable(options.reason, MAX_REASON)  # no reason is a reason to refuse a halt
    found = _halted_by_gateway(world, strategy, as_name, reason)
    if found is None:
        from api.cli.halt_in_store import halt_in_store  # loads the database, which other commands need not

        found = halt_in_store(world, strategy, as_name, reason)
    worlds, lines = found.worlds, list[str]()
    if found.in_store:
        lines.append("No Gateway carried out the halt; it was written straight into the store.")
    for pid in found.ended:
        lines.append(f"Process {pid} was stopped and kept all writers out of the store; it was ended.")
    what = f"{strategy} in " if strategy is not None else ""
    lines.append(f"halted: {what}{', '.join(worlds) or 'no world'}")
    body: dict[str, Any] = {"halted": worlds}
    if strategy is not None:
        body["strategy"] = strategy
    if options.flatten:
        closed = _flattened(options, reason, lines)
        body["flattened"] = [item.json_dict() for item in closed]
        lines += flattened_text(closed)
    print_result(options.output, body, lambda: lines)


def _flattened(options: HaltOptions, reason: str, done: list[str]) -> list[FlattenResult]:
    """Close what is held. Raises QmtlError, which says that the halt is done (`done`)."""
    try:
        with gateway_as(options.as_name) as client:
            return flattened(client, options.world, options.strategy, reason, 0.0)
    except QmtlError as error:
        of_strategy = f" -s {options.strategy}" if options.strategy else ""
        again = f"qmtl world flatten {options.world or '--all'}{of_strategy}"
        first = "once a Gateway answers" if error.code == "E_UNAVAILABLE" else f"{error.remedy}; then"
        raise QmtlError(
            error.code, f"{'; '.join(done)}; but not flattened: {error.message}", f"{first}: {again}"
        ) from error


def _halted_by_gateway(
    world: str | None, strategy: str | None, as_name: str | None, reason: str
) -> Halted | None:
    """Return what is halted already or by a Gateway now; None where no Gateway could within a second.

    Raises QmtlError: what the Gateway refuses.
    """
    with suppress(NotSentError):
        return early_halt.result()
    try:
        with gateway_as(as_name, within_s=LIMIT_S) as client:
            if world is None:
                return Halted(client.halt_all(reason))
            return Halted([world]) if client.halt(world, reason, strategy).world_id == world else None
    except QmtlError as error:
        refused = error.status < HTTPStatus.INTERNAL_SERVER_ERROR and error.code != "E_RATE"
        if refused or error.code == "E_HALT_INCOMPLETE":
            raise
        return None
    except Exception:  # what answers there is no Gateway
        return None


@app.command()
@guarded
def resume(
    world: WorldArgument,
    strategy: OneStrategy = None,
    reason: Reason = "",
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Lift the halt of a world or of one strategy, or open a world that a failed apply left frozen."""
    with gateway_as(as_name) as client:
        found = client.resume(world, reason, strategy)
    print_result(
        output,
        found,
        lambda: [
            f"lifted: {', '.join(found['lifted'])}",
            *fence_text(FenceStatus.model_validate(found["fence"])),
        ],
    )


@app.command()
@guarded
def archive(
    world: WorldArgument,
    undo: Annotated[
        bool, typer.Option("--undo", help="reopen it; it stays halted until it is resumed")
    ] = False,
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Archive a world: it takes no submissions, applies or orders any more. Everything in it is kept."""
    with gateway_as(as_name) as client:
        found = client.update_world(world, WorldUpdate(state="active" if undo else "archived"))
    text = f"{world} is no longer archived; qmtl world resume {world} opens it"
    print_result(output, found.json_dict(), lambda: text if undo else f"{world} is archived")


@app.command("allow-live")
@guarded
def allow_live(
    world: WorldArgument,
    undo: Annotated[bool, typer.Option("--undo", help="refuse every live order from now on")] = False,
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Allow a world to trade live. Going live also takes a policy, an apply and approvals."""
    with gateway_as(as_name) as client:
        found = client.update_world(world, WorldUpdate(allow_live=not undo), live=not undo)
    verb = "allows" if found.spec.allow_live else "does not allow"
    print_result(output, found.json_dict(), lambda: f"{world} {verb} live")
