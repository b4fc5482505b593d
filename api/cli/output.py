"""How the command speaks: tables for people, one JSON object with `-o json`, one line for a mistake, and an exit code.

Exit codes: 0 done; 1 refused (the line says what is wrong and what to do); 2 the command itself was mistyped; 3 a part of the system can't be reached;
4 the submission was judged, and is not active; 130 interrupted.
"""

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from qmtl_sdk.contracts.errors import QmtlError

P = ParamSpec("P")
R = TypeVar("R")
REFUSED, UNREACHABLE, NOT_ACTIVE, INTERRUPTED = 1, 3, 4, 130


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


Output = Annotated[Format, typer.Option("-o", "--output", help="text for people, json for programs")]
console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_result(output: Format, body: Any, text: Callable[[], Any]) -> None:
    """`body` as JSON, or what `text` gives to print. (Any: whatever JSON and rich can show.)"""
    if output is Format.JSON:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return
    shown = text()
    for item in shown if isinstance(shown, list) else [shown]:
        console.print(item, markup=not isinstance(item, str))


def table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    found = Table(title=title or None, title_justify="left")
    for name in header:
        found.add_column(name, overflow="fold")
    for row in rows:
        found.add_row(*[cell.replace("[", "\\[") for cell in row])
    return found


def read(file: Path, code: str, what: str) -> str:
    """The text of a file that a person named. Raises QmtlError (`code`)."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise QmtlError(
            code,
            f"{file} can't be read: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'}",
            f"name the {what}'s YAML file",
        ) from error


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A mistake of the person becomes one line and an exit code; `-o json` gets the same as an object."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except QmtlError as error:
            _fail(error, kwargs.get("output") is Format.JSON)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None

    return run


def _fail(error: QmtlError, as_json: bool) -> NoReturn:
    if as_json:
        sys.stdout.write(
            json.dumps(
                {"error": {"code": error.code, "message": error.message, "remedy": error.remedy}}, indent=2
            )
            + "\n"
        )
    errors.print(f"qmtl: {error}", markup=False)
    raise typer.Exit(UNREACHABLE if error.status == 503 else REFUSED)
