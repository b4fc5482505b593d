"""`qmtl world create | update | list | show | decide`: worlds, their data and their decisions."""

import uuid
from pathlib import Path
from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as
from api.cli.options import As, Live, Output, WorldArgument, Yes
from api.cli.output import Format, ask, guarded, print_result, read_file, table
from api.cli.text.worlds import changes_table, created_text, decision_table, world_text
from qmtl_sdk.contracts.world_changes import merged_spec, only_changed, parse_update, world_differences
from qmtl_sdk.contracts.worlds import SAMPLE, Data, parse_world

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
        spec = spec.model_copy(update={"data": _with_absolute_paths(spec.data, file)})
        created = client.create_world(spec.json_dict(), policy, live)
    print_result(output, created, lambda: created_text(created))


@app.command()
@guarded
def update(
    world: WorldArgument,
    file: Annotated[
        Path,
        typer.Argument(help="YAML with the keys to change, such as `capital`; or the world's whole file"),
    ],
    live: Live = False,
    yes: Yes = False,
    as_name: As = None,
    output: Output = Format.TEXT,
) -> None:
    """Change a world's capital, limits, data or another key, and show before what changes.

    A key of the file replaces the world's, with all that is below it; other keys stay. What loosens the
    rules may need approvals of other people.
    """
    text = read_file(file, "E_WORLD_INVALID", "world")
    with gateway_as(as_name) as client:
        found = client.world(world)
        change = parse_update(text, found.spec)
        if change.data is not None:
            change = change.model_copy(update={"data": _with_absolute_paths(change.data, file)})
        differing = world_differences(found.spec, merged_spec(found.spec, change))
        if differing:
            if output is Format.TEXT:
                print_result(output, None, lambda: changes_table(world, differing))
            if not yes:
                ask(f"change {world} so?", output)
            found = client.update_world(world, only_changed(change, differing), live)
    body = {"world": found.json_dict(), "changes": [item.json_dict() for item in differing]}
    done = f"{world} is changed" if differing else f"{world} is as {file} says already"
    print_result(output, body, lambda: done)


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


def _with_absolute_paths(data: Data, file: Path) -> Data:
    """Resolve paths against the folder of the world's file: the Gateway runs in another one."""
    folder = file.resolve().parent
    presets = tuple(
        preset
        if not preset.path or preset.path.startswith(SAMPLE)
        else preset.model_copy(update={"path": str(folder / preset.path)})
        for preset in data.presets
    )
    return data.model_copy(update={"presets": presets})
