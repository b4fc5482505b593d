"""Print results: text and tables for people, JSON with `-o json`; turn errors into exit codes.

Exit codes: 0 done; 1 refused (one line says what is wrong and what to do); 2 mistyped command; 3 a part
of the system cannot be reached; 4 the submission was judged and is not active; 5 recorded, and carried out
later without a further command; 130 interrupted.
"""

import json
import sys
from collections.abc import Callable, Collection
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.texts import printable

P = ParamSpec("P")
R = TypeVar("R")

REFUSED = 1
"""Exit code of a command that QMTL refused."""
UNREACHABLE = 3
"""Exit code where a part of the system cannot be reached."""
NOT_ACTIVE = 4
"""Exit code of a submission that was judged and is not active."""
RECORDED = 5
"""Exit code of a request that is stored and is carried out later."""
INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


class Format(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


def print_result(output: Format, body: Any, text: Callable[[], Any]) -> None:
    """Print `body` as JSON, or what `text` returns. (Any: whatever JSON and rich can show.)"""
    if output is Format.JSON:
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
        return
    shown = text()
    for item in shown if isinstance(shown, list) else [shown]:
        if isinstance(item, str):
            console.print(printable(item, keep="\n\t"), markup=False)
        else:
            console.print(item)


def table(header: list[str], rows: list[list[str]], title: str = "", unbroken: Collection[str] = ()) -> Table:
    """Build a table of plain text; brackets in a cell are not markup. `unbroken`: columns of short cells."""
    built = Table(title=title or None, title_justify="left")
    for name in header:
        built.add_column(name, overflow="fold", no_wrap=name in unbroken)
    for row in rows:
        built.add_row(*[printable(cell, keep="\n").replace("[", "\\[") for cell in row])
    return built


def read_file(file: Path, code: str, what: str) -> str:
    """Return the text of a file that was named on the command line. Raises QmtlError (`code`)."""
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise QmtlError(code, f"{file} can't be read: {reason}", f"name the {what}'s YAML file") from error


def ask(question: str, output: Format) -> None:
    """Ask a person, and go on after a yes.

    Raises QmtlError: E_NOT_CONFIRMED after any other answer, or where nobody can answer.
    """
    if not sys.stdin.isatty() or output is Format.JSON:
        raise QmtlError("E_NOT_CONFIRMED", f"nobody can answer: {question}", "give --yes in a script")
    if not typer.confirm(question, err=True):
        raise QmtlError("E_NOT_CONFIRMED", "nothing was done", "answer y, or give --yes")


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Print a QmtlError as one line, with `-o json` as an object too, and exit with its code."""

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
        body = {"error": {"code": error.code, "message": error.message, "remedy": error.remedy}}
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    errors.print(printable(f"qmtl: {error}", keep="\n"), markup=False)
    if error.code == "E_RECORDED":
        raise typer.Exit(RECORDED)
    raise typer.Exit(UNREACHABLE if error.status == 503 else REFUSED)
