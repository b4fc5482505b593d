"""`qmtl up | down | status`: the embedded stack."""

from typing import Any

import typer

from activities.settings import settings
from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime import embedded

app = typer.Typer()

# Seconds that a Gateway has to answer `status`; it asks Temporal itself for up to 3 s.
_ANSWER_LIMIT_S = 8.0


@app.command()
@guarded
def up(output: Output = Format.TEXT) -> None:
    """Start the embedded stack, or the parts of it that do not run."""
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
    """Show which processes run, and whether submissions can be processed."""
    config = settings()
    body: dict[str, Any] = {
        "gateway": embedded.recorded_gateway(config),
        "home": str(config.home),
        "running": False,
        "processes": {} if config.gateway.url else _processes(embedded.StackRecord.read(config.home)),
    }
    if body["gateway"]:
        try:
            with gateway(within_s=_ANSWER_LIMIT_S) as client:
                body |= {"health": client.health(), **client.gateway_status(), "running": True}
        except QmtlError as error:
            if error.code != "E_UNAVAILABLE":
                raise
            body["fault"] = str(error)
    print_result(output, body, lambda: _status_text(body))


def _processes(stack: embedded.StackRecord) -> dict[str, dict[str, Any]]:
    """Describe each recorded process. (Any: JSON.)"""
    return {
        name: {"pid": part.pid, "state": "running" if part.alive else "dead"}
        for name, part in stack.processes().items()
    }


def _status_text(body: dict[str, Any]) -> list[str]:
    """Describe what runs. (Any: the JSON of `status`.)"""
    processes = body["processes"]
    dead = [name for name, part in processes.items() if part["state"] == "dead"]
    if not body["gateway"] and len(dead) == len(processes):
        return ["nothing runs: `qmtl up` starts the embedded stack", f"data         {body['home']}"]
    lines = [f"{name:<12} {part['state']}, pid {part['pid']}" for name, part in processes.items()]
    if dead:
        lines.append(f"dead         {', '.join(dead)}: `qmtl up` starts what is dead")
    if not body["running"]:
        halts = "qmtl world halt works without it"
        return [
            *lines,
            f"Gateway      {body.get('fault', 'it does not run')}; {halts}",
            f"data         {body['home']}",
        ]
    health = body["health"]
    return [
        *lines,
        f"Gateway      {body['gateway']}  {health['status']}, {health['workers']} worker(s)",
        f"Temporal     {body['temporal_address']}",
        f"Temporal UI  {body['temporal_ui']}",
        f"worlds       {body['worlds']}",
        *_dead_letters(health["dead_letters"]),
        f"data         {body['home']}",
    ]


def _dead_letters(count: int) -> list[str]:
    """Describe the events that could not be published, where there are any."""
    return [f"dead letters {count}: qmtl events dead-letters list"] if count else []
