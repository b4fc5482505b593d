"""`qmtl world create | list | show | decide`."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from api.cli.output import Format, Output, emit, guarded, table
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.durations import words
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.worlds import SAMPLE, DecisionEnvelope, World, WorldSpec, parse_world
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import settings

app = typer.Typer(help="Worlds: their data, policy and decisions.", no_args_is_help=True)
WorldArgument = Annotated[str, typer.Argument(metavar="WORLD")]


@contextmanager
def gateway(start: bool = False) -> Iterator[GatewayClient]:
    """The configured or running Gateway; with `start`, the embedded one is started where there is none."""
    config = settings()
    url = embedded.find(config) or (EmbeddedStack(config).up().gateway_url if start else None)
    if url is None:
        raise QmtlError("E_UNAVAILABLE", "no Gateway runs", "start the embedded stack with `qmtl up`, or name one in gateway.url")
    with GatewayClient(url, config.token) as client:
        yield client


@app.command()
@guarded
def create(file: Annotated[Path, typer.Argument(help="the world's YAML file; a policy: in it becomes version 1")], output: Output = Format.TEXT) -> None:
    """Create a world from a YAML file. Its data is read once, so that faults in it are said now."""
    try:
        text = file.read_text()
    except OSError as error:
        raise QmtlError("E_WORLD_INVALID", f"{file} can't be read: {error.strerror}", "name the world's YAML file") from error
    spec, policy = parse_world(text)
    with gateway(start=True) as client:
        created = client.create_world(_absolute(spec, file.resolve().parent).json_dict(), policy)
    emit(output, created, lambda: _created_text(created))


@app.command("list")
@guarded
def list_worlds(output: Output = Format.TEXT) -> None:
    """All worlds."""
    with gateway() as client:
        worlds = client.worlds()
    rows = [
        [world.spec.world, world.spec.clock.kind, str(world.policy_version or "none"), f"{sum(len(preset.streams) for preset in world.spec.data.presets)}", world.spec.description] for world in worlds
    ]
    emit(
        output, [world.json_dict() for world in worlds], lambda: table("", ["world", "clock", "policy", "streams", "description"], rows) if rows else "there are no worlds yet: qmtl world create FILE"
    )


@app.command()
@guarded
def show(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """A world, its policy, and its newest decision."""
    with gateway() as client:
        found, policies, decisions, activation = client.world(world), client.policies(world), client.decisions(world), client.activation(world)
    policy = policies[-1] if policies else None
    body = {"world": found.json_dict(), "policy": policy, "decision": decisions[0].json_dict() if decisions else None, "activation": [item.json_dict() for item in activation]}
    emit(output, body, lambda: _world_text(found, policy, decisions))


@app.command()
@guarded
def decide(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Judge the world as it stands and print the decision."""
    with gateway() as client:
        decision = client.decide(world, uuid.uuid4().hex)
    emit(output, decision.json_dict(), lambda: decision_table(decision))


def decision_table(decision: DecisionEnvelope) -> Any:
    """Each strategy with what was decided, and why. (Any: a rich table.)"""
    rows = []
    for item in decision.strategies:
        why = "; ".join(f"{violation.rule}: {violation.detail}" for violation in item.violations) or "passed every gate"
        rows.append(
            [
                item.name or item.strategy_id[:17],
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
    presets = tuple(preset if preset.path.startswith(SAMPLE) else preset.model_copy(update={"path": str(folder / preset.path)}) for preset in spec.data.presets)
    return spec.model_copy(update={"data": spec.data.model_copy(update={"presets": presets})})


def _created_text(created: dict[str, Any]) -> list[str]:
    world = World.model_validate(created["world"])
    lines = [f"world {world.spec.world} ({world.spec.clock.kind} clock, policy version {world.policy_version or 'none yet'})"]
    for name, report in created["data"].items():
        for stream, facts in report["streams"].items():
            gaps = f", {facts['missing']} missing" if facts["missing"] else ""
            lines.append(f"  {name}/{stream}: {facts['bars']} bars, {facts['first'][:10]} to {facts['last'][:10]}{gaps}")
    return lines


def _world_text(world: World, policy: dict[str, Any] | None, decisions: list[DecisionEnvelope]) -> list[Any]:
    spec = world.spec
    lines: list[Any] = [f"world {spec.world}: {spec.description}" if spec.description else f"world {spec.world}"]
    replay = spec.clock.replay
    lines.append(f"clock     {f'replay from {replay.start:%Y-%m-%d %H:%M} UTC at speed {replay.speed:g}' if replay else 'wall'}")
    for preset in spec.data.presets:
        lines.append(f"data      {preset.name}: {preset.source} at {words(preset.interval)}, {preset.calendar}: {', '.join(preset.streams)}")
    lines.append(f"policy    version {policy['version']}: {policy['selection']}" if policy else "policy    none yet")
    return [*lines, decision_table(decisions[0]) if decisions else "decision  none yet"]
