"""What a compute function is, as one hash: its source without its looks, and everything of the project that it draws on.

1. The function's source is parsed; comments, positions, docstrings, annotations and its own name fall away.
2. Each name that it takes from outside is followed: closure cells, globals, defaults, `self.x`. A function of the project is hashed like this one;
   a constant by value; a node by its NodeID; a module or library function by its name.
3. A function without source (typed into a REPL) is hashed by its bytecode and constants.

A value that has no stable form (an open file, a random generator) is refused with its name: guessing would give two functions one identity.
"""

import ast
import builtins
import dataclasses
import enum
import inspect
import linecache
import sys
import sysconfig
import types
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from qmtl_sdk.contracts.canonical import hash_parts
from qmtl_sdk.contracts.errors import QmtlError

_LIBRARY_FOLDERS = tuple(
    str(Path(folder).resolve())
    for folder in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_OUR_PACKAGES = ("qmtl_sdk", "activities", "workflows", "temporal", "api")
_parsed: dict[str, tuple[str, ast.Module]] = {}


def code_hash(function: Callable[..., Any]) -> str:
    """The hash of a compute function. Raises QmtlError (E_CLOSURE_VALUE) for a value that has no stable form."""
    return hash_parts(*_Walk().function(function))


class _Walk:
    """One walk over a function and what it draws on. `_seen` ends recursion: a function met again is named by the order in which it was met."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def function(self, function: Any) -> list[str]:
        if isinstance(function, partial):
            return [
                "partial",
                *self.function(function.func),
                *self.value(list(function.args), "partial"),
                *self.value(dict(function.keywords), "partial"),
            ]
        owner = getattr(function, "__self__", None)
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(function, types.FunctionType):
            if (
                isinstance(function, type)
                or not callable(function)
                or isinstance(function, types.BuiltinFunctionType)
            ):
                return self.value(function, "the compute function")
            return [
                "callable",
                *self.value(function, "the compute function"),
                *self.function(type(function).__call__),
            ]
        if id(function) in self._seen:
            return ["again", str(self._seen[id(function)])]
        self._seen[id(function)] = len(self._seen)
        parts = ["function"]
        tree = _tree(function)
        if tree is None:
            parts += ["bytecode", *self._bytecode(function.__code__)]
            attributes: dict[str, set[str]] = {}
        else:
            parts += ["ast", ast.dump(tree)]
            attributes = _attributes(tree)
        parts += [
            "defaults",
            *self.value(list(function.__defaults__ or ()), "a default"),
            *self.value(dict(function.__kwdefaults__ or {}), "a default"),
        ]
        if owner is not None and not isinstance(owner, types.ModuleType):
            first = function.__code__.co_varnames[0]
            parts += ["self", *self._attributes_of(owner, attributes.get(first, set()), first)]
        for name, value in sorted(_free_names(function).items()):
            parts += ["name", name, *self._named(value, name, attributes.get(name, set()))]
        return parts

    def _named(self, value: Any, name: str, attributes: set[str]) -> list[str]:
        """A name taken from outside. Of a module or a strategy only the attributes that the code uses count."""
        if isinstance(value, types.ModuleType):
            if _is_library(value.__name__, getattr(value, "__file__", None)):
                return ["module", value.__name__]
            return ["project module", *self._attributes_of(value, attributes, name)]
        if _is_strategy(value):
            return ["strategy", *self._attributes_of(value, attributes, name)]
        return self.value(value, name)

    def _attributes_of(self, owner: Any, names: set[str], where: str) -> list[str]:
        parts: list[str] = []
        for name in sorted(names):
            if hasattr(owner, name):
                parts += [name, *self._named(getattr(owner, name), f"{where}.{name}", set())]
        return parts

    def value(self, value: Any, where: str) -> list[str]:
        """The parts of a value, with its kind first, so that `1` and `"1"` differ."""
        kind = type(value).__name__
        if value is None or isinstance(
            value,
            bool
            | int
            | str
            | bytes
            | Decimal
            | Fraction
            | complex
            | date
            | time
            | timedelta
            | tzinfo
            | PurePath
            | range
            | slice,
        ):
            return (
                [kind, repr(value)]
                if not isinstance(value, enum.Enum)
                else [kind, type(value).__qualname__, value.name]
            )
        if isinstance(value, enum.Enum):
            return [kind, type(value).__qualname__, value.name]
        if isinstance(value, float):
            return [kind, repr(value)]
        if isinstance(value, list | tuple):
            return [kind, str(len(value)), *(part for item in value for part in self.value(item, where))]
        if isinstance(value, set | frozenset):
            return [kind, *sorted(hash_parts(*self.value(item, where)) for item in value)]
        if isinstance(value, Mapping):
            pairs = sorted(
                (hash_parts(*self.value(key, where)), hash_parts(*self.value(item, where)))
                for key, item in value.items()
            )
            return [kind, *(part for pair in pairs for part in pair)]
        if hasattr(value, "node_id") and isinstance(value.node_id, str):
            return ["node", value.node_id]
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            array = np.asarray(value)
            return [kind, str(array.dtype), str(array.shape), array.tobytes().hex()]
        if isinstance(value, pd.Series | pd.DataFrame | pd.Index):
            hashed = pd.util.hash_pandas_object(value).to_numpy()
            return [
                kind,
                str(getattr(value, "columns", "")),
                str(getattr(value, "dtypes", getattr(value, "dtype", ""))),
                hashed.tobytes().hex(),
            ]
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.BuiltinFunctionType | np.ufunc):
            return [
                "builtin",
                getattr(value, "__module__", "") or "",
                getattr(value, "__qualname__", getattr(value, "__name__", "")),
            ]
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return ["dataclass", *self._class(type(value)), *self.value(fields, where)]
        if isinstance(value, types.FunctionType | types.MethodType | partial):
            plain = (
                inspect.unwrap(getattr(value, "__func__", value)) if not isinstance(value, partial) else value
            )
            if isinstance(plain, types.FunctionType) and _is_library(
                plain.__module__, plain.__code__.co_filename
            ):
                return ["library", plain.__module__ or "", plain.__qualname__]
            return self.function(value)
        if callable(value) and hasattr(value, "__module__") and hasattr(value, "__qualname__"):
            return ["callable", value.__module__ or "", value.__qualname__]
        raise QmtlError(
            "E_CLOSURE_VALUE",
            f"the compute function draws on {where}, a {type(value).__qualname__}, which has no stable identity",
            "pass numbers, texts, lists, mappings, arrays or functions instead, or create it inside the function",
            name=where,
        )

    def _class(self, cls: type) -> list[str]:
        module = sys.modules.get(cls.__module__)
        if (
            module is None
            or cls.__module__ == "builtins"
            or _is_library(cls.__module__, getattr(module, "__file__", None))
        ):
            return ["library class", cls.__module__, cls.__qualname__]
        if id(cls) in self._seen:
            return ["again", str(self._seen[id(cls)])]
        self._seen[id(cls)] = len(self._seen)
        try:
            tree = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls)))
        except (OSError, TypeError, SyntaxError):
            return ["class", cls.__module__, cls.__qualname__]
        parts = ["project class", ast.dump(_bare(tree))]
        for name, member in sorted(vars(cls).items()):
            if isinstance(member, types.FunctionType) and member.__module__ == cls.__module__:
                parts += [name, *self.function(member)]
        return parts

    def _bytecode(self, code: types.CodeType) -> list[str]:
        parts = [code.co_code.hex(), *code.co_names, *code.co_varnames]
        for constant in code.co_consts:
            parts += (
                self._bytecode(constant)
                if isinstance(constant, types.CodeType)
                else self.value(constant, "a constant")
            )
        return parts


def _is_strategy(value: Any) -> bool:
    return hasattr(value, "add_nodes") and hasattr(value, "setup") and not isinstance(value, type)


def _is_library(module: str | None, file: str | None) -> bool:
    """Whether code belongs to Python, an installed package or QMTL itself: it is named, not followed."""
    if (module or "").split(".")[0] in _OUR_PACKAGES:
        return True
    if not file or file.startswith("<"):
        return not file
    path = str(Path(file).resolve())
    return "site-packages" in path or any(path.startswith(folder + "/") for folder in _LIBRARY_FOLDERS)


def _free_names(function: types.FunctionType) -> dict[str, Any]:
    """What the function and the functions inside it take from outside, by name: closure cells first, then globals. Builtins are left out."""
    found: dict[str, Any] = {}
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    for name, cell in cells.items():
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a name that is bound only later, such as the function itself
            continue
    for name in _global_names(function.__code__):
        if name in function.__globals__ and not hasattr(builtins, name):
            found.setdefault(name, function.__globals__[name])
    return {name: value for name, value in found.items() if value is not function}


def _global_names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _global_names(constant)
    return names


def _tree(function: types.FunctionType) -> ast.AST | None:
    """The bare AST of the function, or None where there is no source."""
    module = _module_tree(function.__code__.co_filename)
    if module is None:
        return None
    node = _find(module, function.__code__)
    return None if node is None else _bare(node)


def _module_tree(filename: str) -> ast.Module | None:
    linecache.checkcache(filename)
    source = "".join(linecache.getlines(filename))
    if not source:
        return None
    cached = _parsed.get(filename)
    if cached is None or cached[0] != source:
        try:
            _parsed[filename] = cached = (source, ast.parse(source))
        except SyntaxError:
            return None
    return cached[1]


def _find(module: ast.Module, code: types.CodeType) -> ast.AST | None:
    """The function or lambda that `code` was compiled from. Several lambdas may share a line: the columns of the bytecode decide."""
    spots = [
        (line, column)
        for line, _, column, _ in code.co_positions()
        if line and column is not None and line > 0
    ]
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == code.co_name:
            first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
            if code.co_firstlineno in (first, node.lineno):
                return node
        if isinstance(node, ast.Lambda) and code.co_name == "<lambda>" and node.lineno == code.co_firstlineno:
            body = node.body
            lo, hi = (
                (body.lineno, body.col_offset),
                (body.end_lineno or body.lineno, body.end_col_offset or 0),
            )
            inside = [spot for spot in spots if spot != (code.co_firstlineno, 0)]
            if inside and all(lo <= spot <= hi for spot in inside):
                return node
    return None


class _Strip(ast.NodeTransformer):
    """Takes away what does not change the result: docstrings, annotations, the function's own name, decorators' places."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.generic_visit(node)
        node.returns = None
        if (
            node.body
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
            and isinstance(node.body[0].value.value, str)
        ):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def _bare(tree: ast.AST) -> ast.AST:
    copy = ast.parse(ast.unparse(tree))
    bare = _Strip().visit(copy)
    top = bare.body[0] if bare.body else bare
    if isinstance(top, ast.FunctionDef):
        top.name = "_"
    return bare  # type: ignore[no-any-return]  # NodeTransformer.visit is untyped


def _attributes(tree: ast.AST) -> dict[str, set[str]]:
    """Which attributes the code reads of which name: `np.mean` → {"np": {"mean"}}."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.setdefault(node.value.id, set()).add(node.attr)
    return found
