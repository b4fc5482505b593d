"""`qmtl token create | list | revoke | rotate`: who may do what."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from api.cli.connection import gateway, gateway_as_owner
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.access import EVERY_WORLD, Role, TokenInfo, TokenRequest
from qmtl_sdk.contracts.documents import validated
from qmtl_sdk.contracts.durations import format_duration, seconds

app = typer.Typer(help="Tokens: who may do what, in which world.", no_args_is_help=True)


@app.command()
@guarded
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="who uses the token; the audit trail records this name")
    ],
    role: Annotated[
        Role, typer.Option("--role", "-r", help="each role may do what the roles before it may")
    ] = Role.READER,
    world: Annotated[
        list[str] | None,
        typer.Option("--world", "-w", help="only for this world; may be repeated; without it, all worlds"),
    ] = None,
    expires: Annotated[str, typer.Option(help="how long the token is valid, like 12h or 30d")] = "30d",
    output: Output = Format.TEXT,
) -> None:
    """Create a token and print it. It is shown only once."""
    body = {
        "subject": name,
        "grants": dict.fromkeys(world or [EVERY_WORLD], role),
        "expires_in_s": seconds(expires),
    }
    wanted: TokenRequest = validated(TokenRequest, body, "E_BODY_INVALID", "token")
    with gateway_as_owner() as client:
        created = client.create_token(wanted)
    valid = f"valid until {created.info.expires_at:%Y-%m-%d %H:%M} UTC"
    print_result(
        output,
        created.json_dict(),
        lambda: [
            created.token,
            "",
            f"{name}: {_grants(created.info)}, {valid}. It is not shown again.",
            "Use it as QMTL_GATEWAY__TOKEN, or as gateway.token in qmtl.yml.",
        ],
    )


@app.command("list")
@guarded
def list_tokens(
    after: Annotated[
        str | None,
        typer.Option(metavar="ID", help="only those after this one, with which the page before ended"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="how many to list")] = 100,
    output: Output = Format.TEXT,
) -> None:
    """List the tokens that you may revoke (their roles are within yours), newest first."""
    with gateway() as client:
        found = client.tokens(after, limit)
    now = datetime.now(UTC)
    rows = [
        [item.token_id, item.subject, _grants(item), item.created_by, _state(item, now)] for item in found
    ]
    header = ["id", "name", "roles", "created by", "state"]

    def text() -> list[Any]:
        if not rows:
            return ["there are no more tokens" if after else "there are no tokens"]
        more = [f"older ones: qmtl token list --after {found[-1].token_id}"] if len(rows) == limit else []
        return [table(header, rows), *more]

    print_result(output, [item.json_dict() for item in found], text)


@app.command()
@guarded
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="the token's id; qmtl token list shows it")],
    output: Output = Format.TEXT,
) -> None:
    """Revoke a token: its requests are refused at once, its streams are closed within seconds."""
    with gateway_as_owner() as client:
        found = client.revoke_token(token_id)
    print_result(output, found.json_dict(), lambda: f"revoked: {found.subject}, {_grants(found)}")


@app.command()
@guarded
def rotate(
    overlap: Annotated[str, typer.Option(help="how long tokens of the present key stay valid")] = "30d",
    output: Output = Format.TEXT,
) -> None:
    """Sign tokens with a new key from now on. Takes an owner."""
    with gateway_as_owner() as client:
        keys = client.rotate_keys(seconds(overlap))
    text = (
        f"a new key signs from now on; tokens of earlier keys stay valid for {overlap} "
        f"({len(keys['keys'])} keys are accepted)"
    )
    print_result(output, keys, lambda: text)


def _grants(item: TokenInfo) -> str:
    return ", ".join(
        f"{role.value} in {'every world' if world == EVERY_WORLD else world}"
        for world, role in item.grants.items()
    )


def _state(item: TokenInfo, now: datetime) -> str:
    if item.revoked_at:
        return f"revoked {item.revoked_at:%Y-%m-%d %H:%M}"
    left = (item.expires_at - now).total_seconds()
    return f"valid for {format_duration(left)}" if left > 0 else "expired"
