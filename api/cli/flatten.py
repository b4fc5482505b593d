"""`qmtl world flatten`: close what strategies hold."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from api.cli.connection import gateway_as
from api.cli.names import SHORT_ID
from api.cli.options import As, OneStrategy, Output, Reason, Yes, with_options
from api.cli.output import Format, ask, guarded, print_result
from api.cli.text.status import unflattened_text
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.flattening import FlattenEvery, FlattenRequest, FlattenResult
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.client import GatewayClient

# Seconds between two questions of what remains.
_POLL_S = 0.2

app = typer.Typer()


@dataclass(frozen=True)
class FlattenOptions:
    """The arguments of `qmtl world flatten`."""

    world: Annotated[str | None, typer.Argument(metavar="WORLD", show_default=False)] = None
    every: Annotated[bool, typer.Option("--all", help="every world")] = False
    strategy: OneStrategy = None
    wait: Annotated[
        float, typer.Option("--wait", metavar="S", min=0, help="wait up to S seconds until nothing is held")
    ] = 0.0
    reason: Reason = ""
    yes: Yes = False
    as_name: As = None
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def flatten(options: FlattenOptions) -> None:
    """Close what a world's strategies hold, or one of them, or all, by orders that only reduce.

    Their open orders are cancelled. It also works where a world is halted. A strategy that is not halted may
    trade again afterwards: `qmtl world halt W --flatten` halts it first.
    """
    if (options.world is None) is not options.every:
        raise typer.BadParameter("name a world or give --all, one of the two")
    if options.every and options.strategy is not None:
        raise typer.BadParameter("name the world of the strategy: --all takes no strategy")
    what = f"{options.strategy} in {options.world}" if options.strategy else options.world or "every world"
    if not options.yes:
        ask(f"close all positions of {what}?", options.output)
    with gateway_as(options.as_name) as client:
        found = flattened(client, options.world, options.strategy, options.reason, options.wait)
        again = [line for item in found for line in _trades_again(client, item.world_id, options.strategy)]
    print_result(
        options.output,
        {"flattened": [item.json_dict() for item in found]},
        lambda: [*(flattened_text(found) or ["flattened: no world"]), *again],
    )


def flattened(
    client: GatewayClient, world: str | None, strategy: str | None, reason: str, wait_s: float
) -> list[FlattenResult]:
    """Close what is held, and wait for up to `wait_s` seconds. Returns the answer of each world.

    Raises QmtlError: what the Gateway refuses; E_NOT_FLAT where something is held after `wait_s`, if that is
    above 0, or where a world failed.
    """
    request = FlattenEvery(flatten_id=uuid.uuid4().hex, reason=printable(reason, MAX_REASON))
    until = time.monotonic() + wait_s
    while True:
        failed = dict[str, str]()
        if world is None:
            answer = client.flatten_all(request)
            found, failed = list(answer.results), answer.failed
        else:
            found = [client.flatten(world, FlattenRequest(**request.model_dump(), strategy=strategy))]
        if time.monotonic() >= until or not (failed or any(item.is_under_way for item in found)):
            break
        time.sleep(_POLL_S)
    held = [line for item in found for line in _remaining(item)] if wait_s else []
    if failed or held:
        faults = [*(f"{name}: {error}" for name, error in failed.items()), *held]
        raise QmtlError(
            "E_NOT_FLAT",
            f"not everything is closed: {'; '.join(faults)}"[:2000],
            "qmtl world orders W --follow shows how far it is; what is under way goes on by itself",
        )
    return found


def flattened_text(found: Sequence[FlattenResult]) -> list[str]:
    """Say what was done, and what remains."""
    return [line for item in found for line in _lines(item)]


def _lines(found: FlattenResult) -> list[str]:
    done = f"{found.cancelled} cancelled, venues are asked to cancel {found.requested}"
    ordered = [
        f"  {'buy' if item.quantity > 0 else 'sell'} {item.quantity.copy_abs()} {item.symbol} "
        f"({item.execution_domain}, {item.strategy_id[:SHORT_ID]})"
        for item in found.ordered
    ]
    remains = [f"  {line}" for line in _remaining(found)] or ["  nothing is held"]
    note = [f"  {found.note}"] if found.note else []
    return [f"flatten {found.world_id}: {len(ordered)} ordered; {done}", *ordered, *remains, *note]


def _remaining(found: FlattenResult) -> list[str]:
    return [unflattened_text(item) for item in found.remains]


def _trades_again(client: GatewayClient, world: str, strategy: str | None) -> list[str]:
    """Say that strategies may trade again, unless they are halted."""
    fence = client.fence(world)
    halted = (name for item in fence.strategy_halts for name in (item.name, item.strategy_id))
    if fence.halted or (strategy is not None and any(name.startswith(strategy) for name in halted)):
        return []
    which = f"{world} -s {strategy}" if strategy else world
    return [f"{world} may trade again at the next bar: qmtl world halt {which} --flatten stops it first"]
