"""`qmtl world create | list | show | decide | sessions | watch`."""

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Annotated, Any

import typer

from api.cli.output import Format, Output, errors, guarded, print_result, read, table
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.durations import format_duration
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import KINDS, CloudEvent
from qmtl_sdk.contracts.stream import Subscribe
from qmtl_sdk.contracts.worlds import SAMPLE, World, WorldSpec, parse_world
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings
from qmtl_sdk.runtime.stream import StreamClient

app = typer.Typer(help="Worlds: their data, policy and decisions.", no_args_is_help=True)
WorldArgument = Annotated[str, typer.Argument(metavar="WORLD")]


@contextmanager
def gateway(start: bool = False) -> Iterator[GatewayClient]:
    """The configured or running Gateway; with `start`, the embedded one is started where there is none."""
    config = settings()
    url = embedded.find(config) or (EmbeddedStack(config).up().gateway_url if start else None)
    if url is None:
        raise QmtlError(
            "E_UNAVAILABLE",
            "no Gateway runs",
            "start the embedded stack with `qmtl up`, or name one in gateway.url",
        )
    with GatewayClient(url, config.token) as client:
        yield client


@app.command()
@guarded
def create(
    file: Annotated[Path, typer.Argument(help="the world's YAML file; a policy: in it becomes version 1")],
    live: Annotated[
        bool, typer.Option("--live", help="confirm that the world may trade live (allow_live: true)")
    ] = False,
    output: Output = Format.TEXT,
) -> None:
    """Create a world from a YAML file. Its data is read once, so that faults in it are said now."""
    spec, policy = parse_world(read(file, "E_WORLD_INVALID", "world"))
    with gateway(start=True) as client:
        created = client.create_world(_absolute(spec, file.resolve().parent).json_dict(), policy, live)
    print_result(output, created, lambda: _created_text(created))


@app.command("list")
@guarded
def list_worlds(output: Output = Format.TEXT) -> None:
    """All worlds."""
    with gateway() as client:
        worlds = client.worlds()
    rows = [
        [
            world.spec.world,
            world.spec.clock.kind,
            str(world.policy_version or "none"),
            f"{sum(len(preset.streams) for preset in world.spec.data.presets)}",
            world.spec.description,
        ]
        for world in worlds
    ]
    print_result(
        output,
        [world.json_dict() for world in worlds],
        lambda: (
            table("", ["world", "clock", "policy", "streams", "description"], rows)
            if rows
            else "there are no worlds yet: qmtl world create FILE"
        ),
    )


@app.command()
@guarded
def show(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """A world, its policy, and its newest decision."""
    with gateway() as client:
        found, policies, decisions, activation = (
            client.world(world),
            client.policies(world),
            client.decisions(world),
            client.activation(world),
        )
    policy = policies[-1] if policies else None
    body = {
        "world": found.json_dict(),
        "policy": policy,
        "decision": decisions[0].json_dict() if decisions else None,
        "activation": [item.json_dict() for item in activation],
    }
    print_result(output, body, lambda: _world_text(found, policy, decisions))


@app.command()
@guarded
def decide(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Judge the world as it stands and print the decision."""
    with gateway() as client:
        decision = client.decide(world, uuid.uuid4().hex)
    print_result(output, decision.json_dict(), lambda: decision_table(decision))


@app.command()
@guarded
def sessions(
    world: Annotated[
        str | None, typer.Argument(metavar="[WORLD]", help="of one world; of all where it is left out")
    ] = None,
    ended: Annotated[bool, typer.Option("--ended", help="those that have ended too")] = False,
    output: Output = Format.TEXT,
) -> None:
    """The strategies that run: who, what, where from, and how they are."""
    with gateway() as client:
        found = client.sessions(world, ended)
    rows = [
        [
            item.label,
            item.world_id,
            item.execution_domain,
            f"{item.actor} at {item.host}",
            f"ended: {item.end_reason}"
            if item.ended_at
            else f"gate {item.report.gate}{f' ({item.report.reason})' if item.report.reason else ''}",
            item.report.bar[:16].replace("T", " "),
            f"{sum(item.report.positions.values())}, {item.report.lag_s:g} s behind",
            item.report.fault,
        ]
        for item in found
    ]
    header = ["strategy", "world", "domain", "who", "state", "newest bar", "events", "fault"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table("", header, rows) if rows else "nothing runs",
    )


@app.command()
@guarded
def watch(
    world: WorldArgument,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", "-t", help="a kind of topic; several times for several; all where it is left out"
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="end after so many events; 0: go on until Ctrl-C")
    ] = 0,
    output: Output = Format.TEXT,
) -> None:
    """What happens in a world, as it happens. -o json prints a CloudEvent a line."""
    lines: Queue[CloudEvent] = Queue()
    with gateway() as client:
        wanted = Subscribe(world_id=world, topics=tuple(topic or KINDS))
        client.subscribe(wanted)  # so that a mistake is said at once, and not tried again
        with StreamClient([client], wanted, on_event=lambda _, event: lines.put(event)) as stream:
            if not stream.ready():
                raise QmtlError(
                    "E_UNAVAILABLE",
                    f"the stream of {world} does not begin: {stream.fault}",
                    "qmtl status shows what runs",
                )
            if output is Format.TEXT:
                errors.print(
                    f"watching {world}: {', '.join(f'{kind} at {sequence}' for kind, sequence in sorted(stream.positions.items()))}. Ctrl-C ends it.",
                    markup=False,
                )
            count = 0
            while not limit or count < limit:
                try:
                    event = lines.get(timeout=0.2)
                except Empty:
                    continue
                count += 1
                sys.stdout.write(
                    (event.model_dump_json() if output is Format.JSON else event_line(event)) + "\n"
                )
                sys.stdout.flush()


def event_line(event: CloudEvent) -> str:
    """An event as a person would say it."""
    data: dict[str, Any] = event.data or {}
    words_of = {
        "activation_updated": lambda: (
            f"{str(data.get('strategy_id'))[:17]} is {'switched on' if data.get('active') else 'off'} in mode {data.get('effective_mode')}, weight {data.get('weight', 0):.3g}"
        ),
        "decision_updated": lambda: (
            f"decided by policy version {data.get('policy_version')}: {data.get('reason')}"
        ),
        "policy_updated": lambda: f"policy version {data.get('version')} is the default now",
        "queue_updated": lambda: (
            f"{len(data.get('queues', []))} queue(s) tagged {'+'.join(data.get('tags', [])) or 'with nothing'} in {data.get('execution_domain')}"
        ),
        "tagquery.upsert": lambda: (
            f"the query for {'+'.join(data.get('tags', []))} finds {len(data.get('queues', []))} queue(s) in {data.get('execution_domain')}"
        ),
        "queue_lifecycle": lambda: f"{data.get('queue')}: {data.get('change')}",
        "sentinel_weight": lambda: (
            f"the traffic of {str(data.get('strategy_id'))[:17]} has weight {data.get('weight')}"
        ),
        "session.opened": lambda: (
            f"{str(data.get('strategy_id'))[:17]} runs (session {str(data.get('session_id'))[:8]})"
        ),
        "session.ended": lambda: f"session {str(data.get('session_id'))[:8]} has ended: {data.get('reason')}",
    }
    said = words_of.get(event.type, lambda: f"{event.subject[:60]}")()
    return f"{event.time:%H:%M:%S}  {event.type:<20} {said}"


def decision_table(decision: DecisionEnvelope) -> Any:
    """Each strategy with what was decided, and why. (Any: a rich table.)"""
    rows = []
    for item in decision.strategies:
        why = (
            "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations)
            or "passed every gate"
        )
        rows.append(
            [
                item.label,
                "active" if item.active else "not active",
                str(item.rank or ""),
                f"{item.weight:.3g}" if item.active else "",
                f"{item.score:.4g}" if item.score is not None else "",
                why,
            ]
        )
    title = f"{decision.world_id}: {decision.reason} (policy version {decision.policy_version}, {decision.effective_mode}, world time {decision.as_of:%Y-%m-%d %H:%M} UTC)"
    return table(title, ["strategy", "decision", "rank", "weight", "score", "why"], rows)


def _absolute(spec: WorldSpec, folder: Path) -> WorldSpec:
    """Paths are relative to the world's file; the Gateway runs elsewhere."""
    presets = tuple(
        preset
        if not preset.path or preset.path.startswith(SAMPLE)
        else preset.model_copy(update={"path": str(folder / preset.path)})
        for preset in spec.data.presets
    )
    return spec.model_copy(update={"data": spec.data.model_copy(update={"presets": presets})})


def _created_text(created: dict[str, Any]) -> list[str]:
    world = World.model_validate(created["world"])
    lines = [
        f"world {world.spec.world} ({world.spec.clock.kind} clock, policy version {world.policy_version or 'none yet'})"
    ]
    for name, report in created["data"].items():
        for stream, facts in report["streams"].items():
            gaps = f", {facts['missing']} missing" if facts["missing"] else ""
            lines.append(
                f"  {name}/{stream}: {facts['bars']} bars, {facts['first'][:10]} to {facts['last'][:10]}{gaps}"
            )
    return lines


def _world_text(world: World, policy: dict[str, Any] | None, decisions: list[DecisionEnvelope]) -> list[Any]:
    spec = world.spec
    lines: list[Any] = [
        f"world {spec.world}: {spec.description}" if spec.description else f"world {spec.world}"
    ]
    replay = spec.clock.replay
    lines.append(
        f"clock     {f'replay from {replay.start:%Y-%m-%d %H:%M} UTC at speed {replay.speed:g}' if replay else 'wall'}"
    )
    for preset in spec.data.presets:
        lines.append(
            f"data      {preset.name}: {preset.source} at {format_duration(preset.interval)}, {preset.calendar}: {', '.join(preset.streams)}"
        )
    lines.append(
        f"policy    version {policy['version']}: {policy['selection']}" if policy else "policy    none yet"
    )
    return [*lines, decision_table(decisions[0]) if decisions else "decision  none yet"]
