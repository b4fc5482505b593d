"""`qmtl up | down | status | submit | demo | world … | token … | config …`."""

import inspect
import sys
import traceback
from importlib.metadata import version
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from api.cli import operate, policy, promotion, token, world
from api.cli.output import NOT_ACTIVE, Format, Output, console, errors, guarded, print_result, table
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient
from qmtl_sdk.runtime.config import Settings, config_file, explain, settings

if TYPE_CHECKING:
    from qmtl_sdk.nodes.strategy import Strategy
    from qmtl_sdk.runtime.result import SubmitResult

app = typer.Typer(
    name="qmtl", help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
config_app = typer.Typer(help="The configuration in force.", no_args_is_help=True)
for part in (operate.app, promotion.app, policy.app):
    world.app.add_typer(part)
app.add_typer(world.app, name="world")
app.add_typer(token.app, name="token")
app.add_typer(config_app, name="config")


def main() -> None:
    app()


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="print the version")] = False) -> None:
    """From strategy code to controlled capital."""
    if show_version:
        console.print(f"qmtl {version('qmtl')}")
        raise typer.Exit


@app.command()
@guarded
def up(output: Output = Format.TEXT) -> None:
    """Start the embedded stack, or what is missing of it: Temporal, worker, relay, Gateway."""
    stack = EmbeddedStack(settings()).up()
    print_result(
        output,
        stack.json_dict(),
        lambda: [
            f"Gateway      {stack.gateway_url}  (API at {stack.gateway_url}/docs)",
            f"Temporal UI  {stack.temporal_ui}",
            f"data         {settings().home}",
            "It stays up until `qmtl down`.",
        ],
    )


@app.command()
@guarded
def down(output: Output = Format.TEXT) -> None:
    """Stop the embedded stack. Worlds, submissions and decisions stay."""
    stopped = EmbeddedStack(settings()).down()
    print_result(
        output,
        {"stopped": stopped},
        lambda: f"stopped: {', '.join(stopped)}" if stopped else "nothing was running",
    )


@app.command()
@guarded
def status(output: Output = Format.TEXT) -> None:
    """What runs, and whether submissions can go all the way."""
    config = settings()
    url = config.gateway.url or embedded.StackRecord.read(config.home).gateway_url
    body: dict[str, Any] = {"gateway": url or None, "home": str(config.home), "running": False}
    if url and embedded.find(config):
        with GatewayClient(url, config.token, away_limit_s=2.0) as client:
            body |= {"running": True, "health": client.health(), **client.gateway_status()}
    print_result(output, body, lambda: _status_text(body))


@app.command()
@guarded
def submit(
    strategy: Annotated[
        str,
        typer.Argument(
            metavar="FILE[:CLASS]", help="the file of the strategy; the class where it holds several"
        ),
    ],
    world: Annotated[str, typer.Option("--world", "-w", help="the world that judges it")],
    as_of: Annotated[
        str | None, typer.Option(help="use only data that had closed by then (ISO time)")
    ] = None,
    full_parity: Annotated[
        bool, typer.Option("--full-parity", help="compare every bar of batch and bar-by-bar execution")
    ] = False,
    run: Annotated[
        bool, typer.Option(help="go on running where the world switches it on; --no-run: only have it judged")
    ] = True,
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="beside the world, on live inputs and without orders; for operators"),
    ] = False,
    output: Output = Format.TEXT,
) -> None:
    """Submit a strategy, compute it here, and print what the world decided; run it where it was switched on. Exit code 4: judged, and not active."""
    from qmtl_sdk.runtime.runner import Runner  # with pandas: a second that only this command should take

    result = Runner.submit(
        load_strategy(strategy),
        world=world,
        as_of=as_of,
        parity="full" if full_parity else "sample",
        run=run,
        shadow=shadow,
    )
    try:
        print_result(output, result.as_dict(), lambda: result_text(result))
        if result.running is not None:
            where = result.context.execution_domain.value
            errors.print(
                f"{result.name} runs in {where} (session {result.running.grant.session_id}). Ctrl-C ends it; `qmtl world sessions {world}` shows how it is.",
                markup=False,
            )
            result.running.wait()
    except KeyboardInterrupt:
        errors.print("Stopped: the session has ended.", markup=False)
    finally:
        Runner.shutdown(result)
    if not result.active and not shadow:
        raise typer.Exit(NOT_ACTIVE)


@app.command()
@guarded
def demo(
    report: Annotated[Path, typer.Option(help="where the HTML report goes")] = Path("qmtl-demo.html"),
    output: Output = Format.TEXT,
) -> None:
    """Try it all: a world of sample prices, three strategies, one of them twice, and a report."""
    from api.cli.demo import run  # with plotly, which no other command needs

    body, text = run(report)
    print_result(output, body, text)


@config_app.command("show")
@guarded
def config_show(output: Output = Format.TEXT) -> None:
    """Every key, its value, and where the value comes from."""
    rows = explain()
    print_result(
        output,
        [{"key": key, "value": value, "from": origin} for key, value, origin in rows],
        lambda: table("", ["key", "value", "from"], [list(row) for row in rows]),
    )


@config_app.command("validate")
@guarded
def config_validate(
    target: Annotated[str, typer.Option(help="all: everything that the profile needs")] = "all",
    output: Output = Format.TEXT,
) -> None:
    """Whether the configuration can be started with; lists everything that is missing at once."""
    if target != "all":
        raise QmtlError("E_CONFIG", f"{target!r} is not a target", "use --target all")
    config: Settings = settings()
    config.require_profile()
    print_result(
        output,
        {"profile": config.profile, "file": str(config_file() or ""), "missing": []},
        lambda: f"profile {config.profile}: nothing is missing",
    )


def load_strategy(text: str) -> "type[Strategy]":
    """The class that `FILE[:CLASS]` names. Raises QmtlError (E_STRATEGY_FILE)."""
    from qmtl_sdk.nodes.strategy import Strategy

    file, _, name = text.partition(":")
    path = Path(file)
    if not path.is_file():
        raise QmtlError(
            "E_STRATEGY_FILE", f"there is no file {file}", "name a Python file with a Strategy class"
        )
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise QmtlError("E_STRATEGY_FILE", f"{file} is not a Python file", "name a file that ends in .py")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except QmtlError:
        raise
    except (
        Exception
    ) as error:  # the author's file may raise anything; the person gets its line, not our stack
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
        raise QmtlError(
            "E_STRATEGY_FILE", f"{file}, line {line}: {type(error).__name__}: {error}", "mend the file"
        ) from error
    found = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Strategy) and value.__module__ == module.__name__
    }
    if name and name not in found:
        raise QmtlError(
            "E_STRATEGY_FILE",
            f"{file} has no strategy {name}{nearest(name, list(found))}",
            f"it has: {', '.join(found) or 'none'}",
        )
    if not name and len(found) != 1:
        what = "no class derived from Strategy" if not found else f"several strategies: {', '.join(found)}"
        raise QmtlError(
            "E_STRATEGY_FILE",
            f"{file} has {what}",
            "write one" if not found else f"name one: {file}:{next(iter(found))}",
        )
    return found[name or next(iter(found))]


def result_text(result: "SubmitResult") -> list[Any]:
    metrics = [
        [name, "missing" if value is None else f"{value:.4g}"] for name, value in result.metrics.items()
    ]
    counts = result.nodes
    lines: list[Any] = [f"{result.name} in {result.world}: {result.verdict}"]
    lines += [table("", ["metric", "value"], metrics)] if metrics else []
    lines += [
        f"nodes     {counts.new} new, {counts.reused} reused; {counts.computed} computed, {counts.cached} from the cache"
    ]
    lines += [
        f"domain    {result.context.execution_domain.value}{f' (safe mode: {result.context.downgrade_reason})' if result.safe_mode else ''}"
    ]
    lines += [f"note      {text}" for text in result.precheck.get("warnings", [])]
    return [
        *lines,
        f"strategy  {result.strategy_id}",
        *([f"workflow  {result.ui_url}"] if result.ui_url else []),
    ]


def _status_text(body: dict[str, Any]) -> list[str]:
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
