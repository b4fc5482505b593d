"""Commands that the texts of the program name exist, and have the arguments that they require."""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from api.cli.commands import app
from qmtl_sdk.nodes.syntax import parsed
from tests.support import ROOT

PACKAGES = ("qmtl_sdk", "activities", "workflows", "temporal", "api")
_GROUPS = ("world", "principal", "token", "events", "config")
_COMMAND = re.compile(rf"qmtl ((?:{'|'.join(_GROUPS)})\b[^`;:,()\n]*)")
# Stands in the text for what an f-string inserts.
_INSERTED = "INSERTED"
_ARGUMENT = re.compile(r"[A-Z][A-Z_…]*|\d+")


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of every string of the program that is no docstring."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = parsed(path.read_text())
            owners = [node for node in ast.walk(tree) if isinstance(getattr(node, "body", None), list)]
            skipped = {
                id(statement.value)
                for owner in owners
                for statement in owner.body  # type: ignore[attr-defined]
                if isinstance(statement, ast.Expr)
            }
            skipped |= {
                id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
            }
            for node in ast.walk(tree):
                text = "" if id(node) in skipped else _text(node)
                if "qmtl " in text:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text  # type: ignore[attr-defined]


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or _INSERTED for part in node.values)
    return ""


def _named(text: str) -> list[list[str]]:
    """Return the words of each command that a text names, with the prose that may follow it."""
    found = [re.sub(r"['\"]", "", words).split() for words in _COMMAND.findall(text)]
    return [words for words in found if words[1:2] != [_INSERTED]]  # which command is not known here


def fault(words: list[str]) -> str:
    """Return why a command would not run: it does not exist, lacks an argument, or has an unknown option."""
    command: Any = typer.main.get_command(app)  # (Any: its classes are not exported)
    rest = list(words)
    while commands := getattr(command, "commands", None):
        if not rest or rest[0] not in commands:
            return f"there is no command {' '.join(words)}"
        command = commands[rest.pop(0)]
    options = {name for item in command.params for name in (*item.opts, *item.secondary_opts)}
    needed = sum(item.required and item.param_type_name == "argument" for item in command.params)
    given = 0
    while rest and (rest[0].startswith("-") or _ARGUMENT.fullmatch(rest[0])):
        word = rest.pop(0)
        if not word.startswith("-"):
            given += 1
        elif word not in options:
            return f"{' '.join(words)}: there is no option {word}"
        elif rest and any(word in item.opts and not item.is_flag for item in command.params):
            rest.pop(0)
    return f"{' '.join(words)}: {needed - given} argument(s) are missing" if given < needed else ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("an owner creates one: qmtl token create", "1 argument(s) are missing"),
        ("judge it: qmtl world decide", "1 argument(s) are missing"),
        ("qmtl world show prints it", "1 argument(s) are missing"),
        ("qmtl world allow-live W --no", "there is no option --no"),
        ("qmtl world forbid W", "there is no command"),
        ("qmtl world promote W STRATEGY --to live --live", ""),
        ("qmtl world policy list W lists them", ""),
        ("qmtl token list shows them", ""),
    ],
)
def test_a_command_that_would_not_run_is_found(text: str, said: str) -> None:
    (words,) = _named(text)
    assert said in fault(words)
    assert bool(said) == bool(fault(words))


def test_the_commands_in_the_texts_of_the_program_would_run() -> None:
    found = [(place, words) for place, text in _texts() for words in _named(text)]
    assert len(found) > 50
    assert [f"{place}: {wrong}" for place, words in found if (wrong := fault(words))] == []
