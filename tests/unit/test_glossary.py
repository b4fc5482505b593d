"""The glossary and the architecture name things that exist, and retired names stay retired."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

from qmtl_sdk.nodes.syntax import parsed
from tests.support import ROOT

GLOSSARY = ROOT / "docs" / "glossary.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGES = ("qmtl_sdk", "activities", "workflows", "temporal", "api", "examples")
# Retired as functions of a module, and right as methods.
_PLAIN = {"follow", "leave"}
# Retired words that the names of tests say no more either.
_RETIRED_IN_TESTS = {"told", "heard", "hears", "asked", "kept"}
_REFERENCE = re.compile(r"`([a-z_][\w.]*):([A-Za-z_][\w.]*)`")
_PLACE = re.compile(r"`([a-z_][\w/]*\.py):([A-Za-z_][\w.]*)`")
_RETIRED = re.compile(r"^\| `(\w+)` \| `(\w+)` \|$", re.MULTILINE)


def _references() -> list[tuple[str, str]]:
    return list(dict.fromkeys(_REFERENCE.findall(GLOSSARY.read_text())))


def _places() -> list[tuple[str, str]]:
    return list(dict.fromkeys(_PLACE.findall(ARCHITECTURE.read_text())))


def _retired() -> dict[str, str]:
    return dict(_RETIRED.findall(GLOSSARY.read_text().split("## Retired names")[1]))


@cache
def _trees() -> dict[Path, ast.Module]:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {path: parsed(path.read_text()) for path in files if "migrations" not in path.parts}


def _homes(name: str) -> list[str]:
    """Return the modules that define a top-level name, to show in the message of a failing test."""
    found = []
    for path, tree in _trees().items():
        defined = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        if name in defined:
            found.append(str(path.relative_to(ROOT).with_suffix("")).replace("/", "."))
    return found


def _attribute(owner: object, name: str) -> object:
    """Return an attribute, or the annotation of a field that exists on instances only."""
    if hasattr(owner, name):
        return getattr(owner, name)
    fields = {key for cls in getattr(owner, "__mro__", ()) for key in vars(cls).get("__annotations__", {})}
    if name in fields:
        return None
    raise AttributeError(f"{owner!r} has no {name}")


@pytest.mark.parametrize(("module", "name"), _references(), ids=[":".join(pair) for pair in _references()])
def test_what_the_glossary_names_exists(module: str, name: str) -> None:
    first = name.split(".")[0]
    try:
        found: object = import_module(module)
        for part in name.split("."):
            found = _attribute(found, part)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"docs/glossary.md: {module}:{name}: {error}; {first} is in: {_homes(first)}")


@pytest.mark.parametrize(("file", "name"), _places(), ids=[":".join(pair) for pair in _places()])
def test_what_the_architecture_names_exists(file: str, name: str) -> None:
    first, _, member = name.partition(".")
    path = ROOT / file
    assert path.exists(), f"docs/architecture.md: there is no {file}; {first} is in: {_homes(first)}"
    body: list[ast.stmt] = _trees()[path].body
    for part in filter(None, (first, member)):
        node = next((node for node in body if part in _defined(node)), None)
        assert node is not None, f"docs/architecture.md: {file} has no {name}; {first} is in: {_homes(first)}"
        body = getattr(node, "body", [])


def test_the_architecture_answers_a_readers_questions() -> None:
    rows = [line for line in ARCHITECTURE.read_text().splitlines() if _PLACE.search(line)]
    assert len(rows) >= 12


def test_every_term_has_one_line_and_a_place_in_the_code() -> None:
    text = GLOSSARY.read_text().split("## Words with one meaning")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| term |")]
    assert [row for row in rows if not _REFERENCE.search(row)] == []
    terms = [row.split(" | ")[0] for row in rows]
    assert len(terms) > 100
    assert len(set(terms)) == len(terms)


def test_no_retired_name_is_left_in_the_code() -> None:
    retired = _retired()
    assert len(retired) > 40
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}, now {retired[name]}"
        for path, tree in _trees().items()
        for name, line in _used(tree)
        if name in retired
    ]
    assert found == []


def test_no_retired_word_is_left_in_the_names_of_tests() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(parsed(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if node.name.startswith("test_") and _RETIRED_IN_TESTS & set(node.name.split("_"))
    ]
    assert found == []


def test_no_retired_name_is_left_in_the_documents() -> None:
    """In code spans and code blocks; elsewhere only names that are no English word, such as `VenueDesk`."""
    retired = _retired()
    coined = {name for name in retired if re.search(r"[a-z][A-Z]", name)}
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        if path == GLOSSARY:
            continue
        text = path.read_text()
        code = " ".join(re.findall(r"```python.*?```|`[^`\n]+`", text, re.DOTALL))
        names = {name for name in retired if name[0].isupper()} & set(re.findall(r"\w+", code))
        names |= coined & set(re.findall(r"\w+", text))
        found += [f"{path.relative_to(ROOT)}: {name}, now {retired[name]}" for name in sorted(names)]
    assert found == []


def _used(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the names of classes, functions, methods, imports and attributes, with their lines.

    Local variables are left out, and so are the methods in `_PLAIN`: `follow` is the right word for a bus.
    """
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    yield from ((node.name, node.lineno) for node in functions)
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, definitions) and node.name not in _PLAIN:
            yield node.name, node.lineno
        elif isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[-1], node.lineno
        elif isinstance(node, ast.Attribute) and node.attr not in _PLAIN:
            yield node.attr, node.lineno


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return set()
