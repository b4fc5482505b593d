"""Arguments and options that several commands share, and commands whose options are one dataclass."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Annotated, Any, ClassVar, Protocol, TypeVar, get_type_hints

import typer

from api.cli.output import Format


class DataclassOptions(Protocol):
    """Any dataclass. (Any: a field's type.)"""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Options = TypeVar("Options", bound=DataclassOptions)

WorldArgument = Annotated[str, typer.Argument(metavar="WORLD")]
StrategyArgument = Annotated[
    str,
    typer.Argument(metavar="STRATEGY", help="the strategy's name, its strategy_id, or the beginning of that"),
]
OneStrategy = Annotated[
    str | None,
    typer.Option(
        "--strategy",
        "-s",
        metavar="STRATEGY",
        help="only this strategy, by name, strategy_id or its beginning",
    ),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN_ID", help="the apply")]
RunOrChangeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN_ID|CHANGE_ID", help="an apply, or a rule change (qmtl world changes WORLD lists them)"
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="text for people, json for programs")]
As = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="NAME",
        help="use the token in QMTL_HOME/tokens/NAME; a local stack has `ana` and `ben`, "
        "to try what takes two people",
    ),
]
Reason = Annotated[str, typer.Option("--reason", help="stored in the audit trail")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask; for scripts")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and change nothing")]
NewRun = Annotated[
    str | None,
    typer.Option("--run-id", help="a name of your own; a repeated request with it is the same apply"),
]
Live = Annotated[
    bool,
    typer.Option("--live", help="confirm a request that leads to live trading; without it, it is refused"),
]


def with_options(command: Callable[[Options], None]) -> Callable[..., None]:
    """Give a command one parameter per field of the dataclass that it takes.

    Typer makes an option of each parameter of a function. A command with many options takes a dataclass
    instead; its fields are annotated as Typer's parameters are. (`...`: the fields.)
    """
    (parameter,) = inspect.signature(command).parameters.values()
    options: type[Options] = get_type_hints(command)[parameter.name]
    hints = get_type_hints(options, include_extras=True)

    @wraps(command)
    def run(**values: Any) -> None:  # Any: each field has its own type, which Typer has converted to
        command(options(**values))

    run.__dict__["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(options)
        ]
    )
    return run
