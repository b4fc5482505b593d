"""`qmtl up | down | status`: the embedded stack."""

from typing import Any

import typer

from activities.settings import settings
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result
from api.stack import EmbeddedStack
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient

app = typer.Typer()

STATUS_LIMIT_S = 2.0
"""Seconds to retry a Gateway that does not answer: `status` tells a person quickly."""


@app.command()
@guarded
def up(output: Output = Format.TEXT) -> None:
    """Start the embedded stack, or the parts of it that do not run: Temporal, worker, relay, Gateway."""
    stack = EmbeddedStack(settings()).up()
    print_result(
        output,
        stack.json_dict(),
        lambda: [
            f"Gateway      {stack.gateway_url}  (API at {stack.gateway_url}/docs)",
            f"Temporal UI  {stack.temporal_ui}",
            f"data         {settings().home}",
            "The stack keeps running until `qmtl down`.",
        ],
    )


@app.command()
@guarded
def down(output: Output = Format.TEXT) -> None:
    """Stop the embedded stack. Worlds, submissions and decisions are kept."""
    stopped = EmbeddedStack(settings()).down()
    text = f"stopped: {', '.join(stopped)}" if stopped else "nothing was running"
    print_result(output, {"stopped": stopped}, lambda: text)


@app.command()
@guarded
def status(output: Output = Format.TEXT) -> None:
    """Show what runs, and whether submissions can be processed."""
    config = settings()
    url = config.gateway.url or embedded.StackRecord.read(config.home).gateway_url
    body: dict[str, Any] = {"gateway": url or None, "home": str(config.home), "running": False}
    if url and embedded.find(config):
        with GatewayClient(url, config.token, away_limit_s=STATUS_LIMIT_S) as client:
            body |= {"running": True, "health": client.health(), **client.gateway_status()}
    print_result(output, body, lambda: _status_text(body))


def _status_text(body: dict[str, Any]) -> list[str]:
    """Describe what runs. (Any: the Gateway's JSON.)"""
    if not body["running"]:
        return ["nothing runs: `qmtl up` starts the embedded stack", f"data         {body['home']}"]
    health = body["health"]
    return [
        f"Gateway      {body['gateway']}  {health['status']}, {health['workers']} worker(s)",
        f"Temporal     {body['temporal_address']}",
        f"Temporal UI  {body['temporal_ui']}",
        f"worlds       {body['worlds']}",
        f"data         {body['home']}",
    ]
