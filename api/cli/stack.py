"""`qmtl up | down | status`: the embedded stack."""

from typing import Any

import typer

from activities.settings import settings
from api.cli.connection import gateway
from api.cli.options import Output
from api.cli.output import Format, guarded, print_result
from api.cli.processes import heartbeats_in_store, labelled, processes_text
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.processes import ProcessStatus
from qmtl_sdk.runtime import embedded

app = typer.Typer()

# Seconds that a Gateway has to answer `status`; it asks database and Temporal for some seconds itself.
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
    """Show which processes run, what is missing, and what that means for orders."""
    config = settings()
    url = embedded.recorded_gateway(config)
    # (Any: JSON.)
    body: dict[str, Any] = {"gateway": url, "home": str(config.home), "running": False}
    beats: list[ProcessStatus] | None = None
    if url:
        try:
            with gateway(within_s=_ANSWER_LIMIT_S) as client:
                body |= {"health": client.health(), **client.gateway_status(), "running": True}
                beats = [ProcessStatus.model_validate(item) for item in body["processes"]]
        except QmtlError as error:
            if error.code != "E_UNAVAILABLE":
                raise
            body["fault"] = str(error)
    if beats is None:
        beats = heartbeats_in_store(config)
    stack = embedded.StackRecord() if config.gateway.url else embedded.StackRecord.read(config.home)
    processes = labelled(stack, beats)
    body["restart_faults"] = stack.faults
    body["processes"] = {label: item.json_dict() for label, item in processes.items()}
    print_result(output, body, lambda: _status_text(body, processes))


def _status_text(body: dict[str, Any], processes: dict[str, ProcessStatus]) -> list[str]:
    """Describe what runs. (Any: the JSON of `status`.)"""
    faults: dict[str, str] = body["restart_faults"]
    dead = [label for label, item in processes.items() if item.state == "dead"]
    if not body["gateway"] and len(dead) == len(processes):
        return ["nothing runs: `qmtl up` starts the embedded stack", f"data         {body['home']}"]
    lines = processes_text(processes)
    if dead:
        starter = "the supervisor starts" if "supervisor" not in dead else "`qmtl up` starts"
        lines.append(f"dead         {', '.join(dead)}: {starter} what is dead")
    lines += [f"failing      {name} ends whenever it is started: {fault}" for name, fault in faults.items()]
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
        *(f"missing      {name}: {meaning}" for name, meaning in health["missing"].items()),
        *(f"fault        {name}: {text}" for name, text in body["faults"].items()),
        f"Temporal     {body['temporal_address']}",
        f"Temporal UI  {body['temporal_ui']}",
        f"worlds       {body['worlds']}",
        *_dead_letters(health["dead_letters"]),
        f"data         {body['home']}",
    ]


def _dead_letters(count: int) -> list[str]:
    """Describe the events that could not be published, where there are any."""
    return [f"dead letters {count}: qmtl events dead-letters list"] if count else []
