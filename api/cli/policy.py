"""`qmtl world policy list | show | add | set-default | diff`, and `qmtl world replay-policy`."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from api.cli.connection import gateway
from api.cli.names import SHORT_ID
from api.cli.options import Output, WorldArgument
from api.cli.output import Format, guarded, print_result, read_file, table
from qmtl_sdk.contracts.durations import seconds
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.policy_text import policy_from, policy_mapping

app = typer.Typer()
policy_app = typer.Typer(
    help="Policies of a world: versions, the default, and differences.", no_args_is_help=True
)
app.add_typer(policy_app, name="policy")

File = Annotated[Path, typer.Argument(help="the policy's YAML file")]
Version = Annotated[int, typer.Argument(min=1, help="a policy version")]


@policy_app.command("list")
@guarded
def list_policies(world: WorldArgument, output: Output = Format.TEXT) -> None:
    """List all versions; the world is judged by the default."""
    with gateway() as client:
        found = client.policies(world)
        default = client.world(world).policy_version
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
    header = ["version", "", "preset", "score", "furthest stage"]
    print_result(
        output,
        found,
        lambda: (
            table(header, rows) if rows else f"{world} has no policy yet: qmtl world policy add {world} FILE"
        ),
    )


@policy_app.command("show")
@guarded
def show(
    world: WorldArgument,
    version: Annotated[int | None, typer.Argument(help="a policy version; without it, the default")] = None,
    output: Output = Format.TEXT,
) -> None:
    """Show one version in full, with its preset expanded."""
    with gateway() as client:
        wanted = version if version is not None else client.world(world).policy_version
        found = next((item for item in client.policies(world) if item["version"] == wanted), None)
    if found is None:
        raise QmtlError(
            "E_POLICY_UNKNOWN",
            f"{world} has no policy version {wanted}",
            f"qmtl world policy list {world} lists them",
        )
    print_result(output, found, lambda: yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())


@policy_app.command("add")
@guarded
def add(world: WorldArgument, file: File, output: Output = Format.TEXT) -> None:
    """Add a version, which becomes the default. An invalid policy is refused, and the default stays."""
    with gateway() as client:
        found = client.add_policy(world, _read(file))
    text = (
        f"{world} is judged by policy version {found.version} from now on; "
        f"qmtl world decide {world} judges it at once"
    )
    print_result(output, found.json_dict(), lambda: text)


@policy_app.command("set-default")
@guarded
def set_default(world: WorldArgument, version: Version, output: Output = Format.TEXT) -> None:
    """Judge the world by an earlier version again."""
    with gateway() as client:
        found = client.set_default_policy(world, version)
    print_result(
        output, found.json_dict(), lambda: f"{world} is judged by policy version {version} from now on"
    )


@policy_app.command("diff")
@guarded
def diff(world: WorldArgument, version: Version, to: Version, output: Output = Format.TEXT) -> None:
    """Show the differences between two versions."""
    with gateway() as client:
        found = client.diff_policies(world, version, to)
    rows = [[item.key, str(item.before), str(item.after)] for item in found]
    header = ["key", f"version {version}", f"version {to}"]
    print_result(
        output,
        [item.json_dict() for item in found],
        lambda: table(header, rows) if rows else "the versions are equal",
    )


@app.command("replay-policy")
@guarded
def replay_policy(
    world: WorldArgument,
    file: File,
    since: Annotated[
        str | None,
        typer.Option(help="replay decisions since then: a duration like 7d, or a time; without it, all"),
    ] = None,
    output: Output = Format.TEXT,
) -> None:
    """Show what a draft policy would have decided on the recorded evidence. Nothing is written."""
    with gateway() as client:
        found = client.replay_policy(world, _read(file), _since(since))
    rows = [
        [
            item["decided_at"][:19].replace("T", " "),
            change["name"] or change["strategy_id"][:SHORT_ID],
            change["was"],
            change["would_be"],
            change["why"],
        ]
        for item in found["differ"]
        for change in item["changes"]
    ]
    header = ["decided (UTC)", "strategy", "was", "would be", "why"]
    summary = f"{len(found['differ'])} of {found['decisions']} decisions would differ"
    print_result(output, found, lambda: [*([table(header, rows)] if rows else []), summary])


def _read(file: Path) -> dict[str, Any]:
    """Return the mapping in a policy's file. It is checked here, so that an error names its line.

    Raises QmtlError. (Any: YAML.)
    """
    body = policy_mapping(read_file(file, "E_POLICY_INVALID", "policy"))
    policy_from(body)
    return body


def _since(text: str | None) -> str | None:
    """Return the time that a duration or an ISO time stands for; a time without a zone is UTC."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return (datetime.now(UTC) - timedelta(seconds=seconds(text, "E_BODY_INVALID"))).isoformat()
    return moment.replace(tzinfo=UTC).isoformat() if moment.tzinfo is None else text
