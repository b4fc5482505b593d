"""`qmtl world watch`: the events of a world, one line each."""

import json
import sys
import time
from queue import Empty, Queue
from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.names import StrategyNames
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, errors, guarded
from api.cli.text.events import event_line
from qmtl_sdk.contracts.decisions import WHOLE_WORLD
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import KINDS, CloudEvent
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.texts import printable
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.stream import StreamClient

app = typer.Typer()

POLL_S = 0.2
"""Seconds to wait for an event before checking the connection: short, so that Ctrl-C acts at once."""
CHECK_EVERY_S = 2.0
"""Seconds between two checks of the token while the stream is not connected."""
_DENIED = (401, 403)


@app.command()
@guarded
def watch(
    world: WorldArgument,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", "-t", help=f"only this kind of event, of {', '.join(KINDS)}; may be repeated"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="end after this many events; 0: run until Ctrl-C")
    ] = 0,
    output: Output = Format.TEXT,
) -> None:
    """Print a world's events as they happen. With -o json, each line is a CloudEvent."""
    events: Queue[CloudEvent] = Queue()
    wanted = Subscribe(world_id=world, topics=tuple(topic or KINDS))
    with gateway() as client:
        client.subscribe(wanted)  # a wrong world or topic is refused here; the stream would retry
        names = StrategyNames(client, world)
        with StreamClient([client], wanted, on_event=lambda _, event: events.put(event)) as stream:
            if not stream.ready():
                raise QmtlError(
                    "E_UNAVAILABLE",
                    f"the stream of {world} does not start: {stream.fault}",
                    "qmtl status shows what runs",
                )
            if output is Format.TEXT:
                positions = ", ".join(
                    f"{kind} at {number}" for kind, number in sorted(stream.positions.items())
                )
                errors.print(f"watching {world}: {positions}. Ctrl-C ends it.", markup=False)
            count = 0
            while not limit or count < limit:
                event = _next(events, stream, client, wanted)
                count += 1
                if output is Format.JSON:
                    line = json.dumps(event.json_dict())  # ASCII alone, whatever the event's texts hold
                else:
                    line = printable(_line(event, names, client))
                sys.stdout.write(line + "\n")
                sys.stdout.flush()


def _next(
    events: Queue[CloudEvent], stream: StreamClient, client: GatewayClient, wanted: Subscribe
) -> CloudEvent:
    """Wait for the next event. Raises QmtlError where the Gateway no longer lets this token watch."""
    check_at = 0.0
    while True:
        try:
            return events.get(timeout=POLL_S)
        except Empty:
            if not stream.connected and time.monotonic() >= check_at:
                _require_access(client, wanted)
                check_at = time.monotonic() + CHECK_EVERY_S


def _require_access(client: GatewayClient, wanted: Subscribe) -> None:
    """Raise the Gateway's refusal of this token; a Gateway that is away for a moment is no refusal."""
    try:
        client.subscribe(wanted, patience_s=0.0)
    except QmtlError as error:
        if error.status in _DENIED:
            raise


def _line(event: CloudEvent, names: StrategyNames, client: GatewayClient) -> str:
    data = event.data or {}
    halted = ""
    if data.get("strategy_id") == WHOLE_WORLD and data.get("halted"):
        halted = client.fence(event.worldid).halted  # the event itself carries no reason
    return event_line(event, names, halted)
