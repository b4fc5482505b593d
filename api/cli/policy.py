"""`qmtl world policy list | show | add | set-default | diff`, and `qmtl world replay-policy`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from api.cli.output import Format, Output, guarded, print_result, read, table
from api.cli.world import WorldArgument, gateway
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy_text import policy_from, policy_mapping

app = typer.Typer()
policy_app = typer.Typer(
    help="A world's policies: versions, the default, what differs.", no_args_is_help=True
)
app.add_typer(policy_app, name="policy")
File = Annotated[Path, typer.Argument(help="the policy's YAML file")]


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a policy's file, checked here first, so that a mistake is said with its place. Raises QmtlError."""
    body = policy_mapping(read(file, "E_POLICY_INVALID", "policy"))
    policy_from(body)
    return body


@policy_app.command("list")
@guarded
def list_policies(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """All versions; the default is the one that the world is judged by."""
    with gateway() as client:
        found, default = client.policies(world), client.world(world).policy_version
    rows = [
        [
            str(item["version"]),
            "default" if item["version"] == default else "",
            item.get("preset") or "",
            item["selection"]["score"],
            item["gating_policy"]["domains"]["to"],
        ]
        for item in found
    ]
    print_result(
        output,
        found,
        lambda: (
            table("", ["version", "", "preset", "score", "as far as"], rows)
            if rows
            else f"{world} has no policy yet: qmtl world policy add {world} FILE"
        ),
    )


@policy_app.command("show")
@guarded
def show(
    world: WorldArgument,
    version: Annotated[int | None, typer.Argument(help="the default where it is left out")] = None,
    output: Output = Format.TEXT,
) -> None:
    """One version in full, presets expanded."""
    with gateway() as client:
        wanted = version if version is not None else client.world(world).policy_version
        found = next((item for item in client.policies(world) if item["version"] == wanted), None)
    if found is None:
        raise QmtlError(
            "E_POLICY_UNKNOWN", f"{world} has no policy version {wanted}", "qmtl world policy list W"
        )
    print_result(output, found, lambda: yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())


@policy_app.command("add")
@guarded
def add(world: WorldArgument, file: File, output: Output = Format.TEXT) -> None:
    """Add a version, which becomes the default. One that does not parse is refused, and the earlier default stays."""
    with gateway() as client:
        found = client.add_policy(world, _read(file))
    print_result(
        output,
        found.json_dict(),
        lambda: (
            f"{world} is judged by policy version {found.version} from now on; qmtl world decide {world} judges it at once"
        ),
    )


@policy_app.command("set-default")
@guarded
def set_default(
    world: WorldArgument, version: Annotated[int, typer.Argument(min=1)], output: Output = Format.TEXT
) -> None:
    """Judge by an earlier version again."""
    with gateway() as client:
        found = client.set_default_policy(world, version)
    print_result(
        output, found.json_dict(), lambda: f"{world} is judged by policy version {version} from now on"
    )


@policy_app.command("diff")
@guarded
def diff(
    world: WorldArgument,
    version: Annotated[int, typer.Argument(min=1)],
    to: Annotated[int, typer.Argument(min=1)],
    output: Output = Format.TEXT,
) -> None:
    """What differs between two versions."""
    with gateway() as client:
        found = client.diff_policies(world, version, to)
    rows = [[item.key, str(item.before), str(item.after)] for item in found]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: (
            table("", ["key", f"version {version}", f"version {to}"], rows) if rows else "nothing differs"
        ),
    )


@app.command("replay-policy")
@guarded
def replay_policy(
    world: WorldArgument,
    file: File,
    since: Annotated[
        str | None,
        typer.Option(help="how far back, like 7d, or a time; all that is recorded where it is left out"),
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """What a draft policy would have decided on the recorded evidence. Nothing is written."""
    with gateway() as client:
        found = client.replay_policy(world, _read(file), _since(since))
    rows = [
        [
            item["decided_at"][:19].replace("T", " "),
            change["name"] or change["strategy_id"][:17],
            change["was"],
            change["would_be"],
            change["why"],
        ]
        for item in found["differ"]
        for change in item["changes"]
    ]
    summary = f"{len(found['differ'])} of {found['decisions']} decisions would differ"
    print_result(
        output,
        found,
        lambda: [
            *([table("", ["decided (UTC)", "strategy", "was", "would be", "why"], rows)] if rows else []),
            summary,
        ],
    )


def _since(text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return (
            datetime.fromisoformat(text).replace(tzinfo=UTC).isoformat()
            if datetime.fromisoformat(text).tzinfo is None
            else text
        )
    except ValueError:
        return (datetime.now(UTC) - timedelta(seconds=seconds(text, "E_BODY_INVALID"))).isoformat()
