"""`qmtl submit`: submit a strategy, compute it here, and run it where the world activates it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from api.cli.options import Output, with_options
from api.cli.output import NOT_ACTIVE, UNREACHABLE, Format, errors, guarded, print_result
from api.cli.strategy_file import load_strategy
from api.cli.text.submissions import result_text

if TYPE_CHECKING:
    from qmtl_sdk.runtime.result import SubmitResult

app = typer.Typer()

# Seconds between two looks at the stage that the strategy runs in.
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """Options of `qmtl submit`."""

    strategy: Annotated[
        str,
        typer.Argument(
            metavar="FILE[:CLASS]", help="the strategy's file; name the class where it defines several"
        ),
    ]
    world: Annotated[str, typer.Option("--world", "-w", help="the world that judges the strategy")]
    as_of: Annotated[str | None, typer.Option(help="use only bars that had closed by then (ISO time)")] = None
    full_parity: Annotated[
        bool, typer.Option("--full-parity", help="compare every bar of batch and bar-by-bar execution")
    ] = False
    run: Annotated[
        bool,
        typer.Option(help="keep running where the world activates the strategy; --no-run: only judge it"),
    ] = True
    shadow: Annotated[
        bool,
        typer.Option("--shadow", help="compute on live inputs without evidence or orders; takes an operator"),
    ] = False
    output: Output = Format.TEXT


@app.command()
@guarded
@with_options
def submit(options: SubmitOptions) -> None:
    """Submit a strategy, compute it here, and print the decision; run it where it was activated.

    Exit code 4: it was judged and is not active. Exit code 3: no Gateway answers, so it was computed only.
    """
    from qmtl_sdk.runtime.runner import Runner  # loads pandas: a second that other commands need not wait

    result = Runner.submit(
        load_strategy(options.strategy),
        world=options.world,
        as_of=options.as_of,
        parity="full" if options.full_parity else "sample",
        run=options.run,
        shadow=options.shadow,
    )
    try:
        print_result(options.output, result.as_dict(), lambda: result_text(result))
        _run_until_interrupted(result)
    finally:
        Runner.shutdown(result)
    if result.error_code == "E_UNAVAILABLE":
        raise typer.Exit(UNREACHABLE)
    if not result.active and not options.shadow:
        raise typer.Exit(NOT_ACTIVE)


def _run_until_interrupted(result: "SubmitResult") -> None:
    """Wait until the strategy stops, and say in which stage it runs whenever that changes."""
    from qmtl_sdk.runtime.signals import sigterm_as_interrupt

    running = result.running
    if running is None:
        return
    session_id = ""
    try:
        with sigterm_as_interrupt():
            while running.alive:
                if session_id != running.grant.session_id:
                    session_id = running.grant.session_id
                    errors.print(
                        f"{result.name} runs in {running.grant.context.execution_domain.value} "
                        f"(session {session_id}). "
                        f"Ctrl-C stops it; `qmtl world sessions {result.world}` shows its state.",
                        markup=False,
                    )
                running.wait(_POLL_S)
    except KeyboardInterrupt:
        errors.print("Stopped: the session has ended.", markup=False)
