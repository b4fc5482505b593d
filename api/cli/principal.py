"""`qmtl principal add | list | disable`: who may have tokens."""

from typing import Annotated

import typer

from api.cli.connection import gateway, gateway_as_owner
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result, table
from qmtl_sdk.contracts.access import Principal, PrincipalRequest
from qmtl_sdk.contracts.documents import validated

app = typer.Typer(help="Principals: who may have tokens.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="the name in the audit trail")]


@app.command()
@guarded
def add(name: _Name, output: Output = Format.TEXT) -> None:
    """Register a principal, or enable one again. Takes an owner."""
    wanted: PrincipalRequest = validated(PrincipalRequest, {"name": name}, "E_BODY_INVALID", "principal")
    with gateway_as_owner() as client:
        found = client.add_principal(wanted.name)
    text = f"registered: {found.name}; qmtl token create {found.name} creates a token for them"
    print_result(output, found.json_dict(), lambda: text)


@app.command("list")
@guarded
def list_principals(output: Output = Format.TEXT) -> None:
    """List the principals by name."""
    with gateway() as client:
        found = client.principals()
    rows = [[item.name, item.created_by, f"{item.created_at:%Y-%m-%d %H:%M}", _state(item)] for item in found]
    header = ["name", "registered by", "when (UTC)", "state"]
    print_result(output, [item.json_dict() for item in found], lambda: table(header, rows))


@app.command()
@guarded
def disable(name: _Name, output: Output = Format.TEXT) -> None:
    """Disable a principal, and revoke all its tokens. Takes an owner."""
    with gateway_as_owner() as client:
        found = client.disable_principal(name)
    print_result(output, found.json_dict(), lambda: f"disabled: {found.name}; its tokens are revoked")


def _state(item: Principal) -> str:
    return f"disabled by {item.disabled_by}" if item.disabled_at else "enabled"
