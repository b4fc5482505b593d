"""`qmtl world create | list | show | decide`: worlds, their data and their decisions."""

import uuid
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import gateway
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, read_file, table
from api.cli.text.worlds import created_text, decision_table, world_text
from qmtl_sdk.contracts.worlds import SAMPLE, WorldSpec, parse_world

app = typer.Typer(help="Worlds: their data, policy, decisions, applies and orders.", no_args_is_help=True)


@app.command()
@guarded
def create(
    file: Annotated[
        Path, typer.Argument(help="the world's YAML file; a `policy:` in it becomes policy version 1")
    ],
    live: Annotated[
        bool, typer.Option("--live", help="confirm that the world may trade live (allow_live: true)")
    ] = False,
    output: Output = Format.TEXT,
) -> None:
    """Create a world from a YAML file. Its data is read once, so that errors in it show now."""
    spec, policy = parse_world(read_file(file, "E_WORLD_INVALID", "world"))
    with gateway(start=True) as client:
        created = client.create_world(_with_absolute_paths(spec, file).json_dict(), policy, live)
    print_result(output, created, lambda: created_text(created))


@app.command("list")
@guarded
def list_worlds(output: Output = Format.TEXT) -> None:
    """List all worlds that your token may read."""
    with gateway() as client:
        worlds = client.worlds()
    rows = [
        [
            world.spec.world,
            world.spec.clock.kind,
            str(world.policy_version or "none"),
            str(sum(len(preset.streams) for preset in world.spec.data.presets)),
            world.spec.description,
        ]
        for world in worlds
    ]
    header = ["world", "clock", "policy", "streams", "description"]
    print_result(
        output,
        [world.json_dict() for world in worlds],
        lambda: table(header, rows) if rows else "there are no worlds yet: qmtl world create FILE",
    )


@app.command()
@guarded
def show(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Show a world, its policy and its newest decision."""
    with gateway() as client:
        found = client.world(world)
        policies = client.policies(world)
        decisions = client.decisions(world)
        activation = client.activation(world)
    policy = policies[-1] if policies else None
    body = {
        "world": found.json_dict(),
        "policy": policy,
        "decision": decisions[0].json_dict() if decisions else None,
        "activation": [item.json_dict() for item in activation],
    }
    print_result(output, body, lambda: world_text(found, policy, decisions))


@app.command()
@guarded
def decide(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """Judge the world now and print the decision."""
    with gateway() as client:
        decision = client.decide(world, uuid.uuid4().hex)
    print_result(output, decision.json_dict(), lambda: decision_table(decision))


def _with_absolute_paths(spec: WorldSpec, file: Path) -> WorldSpec:
    """Resolve paths against the folder of the world's file: the Gateway runs in another one."""
    folder = file.resolve().parent
    presets = tuple(
        preset
        if not preset.path or preset.path.startswith(SAMPLE)
        else preset.model_copy(update={"path": str(folder / preset.path)})
        for preset in spec.data.presets
    )
    return spec.model_copy(update={"data": spec.data.model_copy(update={"presets": presets})})
