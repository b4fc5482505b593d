"""The hash of a compute function: of its source, and of all project code and values that it uses.

1. The function's source is parsed; comments, positions, docstrings, annotations and its own name are dropped
   (`syntax`).
2. Each name that it takes from outside is followed: closure cells, globals, defaults, `self.x`. A function of
   the project is hashed in the same way; a constant by its value; a node by its NodeID; a module or a
   function of a library by its name.
3. A function without source (typed into a REPL) is hashed by its bytecode and constants.

A value without a stable form (an open file, a random generator) is refused by name: guessing could give two
functions the same identity.
"""

import ast
import builtins
import dataclasses
import enum
import inspect
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
from qmtl_sdk.contracts.identity import require_no_context
from qmtl_sdk.nodes.syntax import attributes_read, class_tree, function_tree

_QMTL_ROOT = Path(__file__).resolve().parents[2]
"""The folder that QMTL's packages are installed in: `site-packages`, or the source tree."""

_LIBRARY_FOLDERS = tuple(
    f"{folder}/"
    for folder in {
        *(
            str(Path(sysconfig.get_path(name)).resolve())
            for name in ("stdlib", "platstdlib", "purelib", "platlib")
        ),
        *(str(_QMTL_ROOT / name) for name in ("qmtl_sdk", "activities", "workflows", "temporal", "api")),
    }
)
"""Code in these folders is hashed by name.

QMTL's own packages are recognised by their folder, because a project may
have a package of the same name (`api`, `workflows`).
"""

_PLAIN_TYPES = (
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    Decimal,
    Fraction,
    date,
    time,
    timedelta,
    tzinfo,
    PurePath,
    range,
    slice,
)
"""Types whose `repr` says everything about a value."""


def code_hash(function: Callable[..., Any]) -> str:
    """Return the hash of a compute function.

    Raises QmtlError: E_CLOSURE_VALUE where the function uses a value without a stable form, E_NODE_ID_FIELDS
    where it uses its strategy's world.
    """
    return hash_parts(*_Hasher().function(function))


class _Hasher:
    """One walk over a function and everything that it uses.

    A function or class that is met a second time is named by the order in which it was first met: this ends
    recursion.
    """

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def function(self, function: Any) -> list[str]:
        """Return the parts of a function: code, defaults, and every name that it takes from outside."""
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
            return self._not_a_function(function)
        if id(function) in self._seen:
            return ["again", str(self._seen[id(function)])]
        self._seen[id(function)] = len(self._seen)
        tree = function_tree(function)
        attributes: dict[str, set[str]] = {} if tree is None else attributes_read(tree)
        parts = ["function"]
        if tree is None:
            parts += ["bytecode", *self._bytecode(function.__code__)]
        else:
            parts += ["ast", ast.dump(tree)]
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

    def value(self, value: Any, where: str) -> list[str]:
        """Return the parts of a value, its type first, so that `1` and `"1"` differ."""
        kind = type(value).__name__
        if isinstance(value, enum.Enum):
            return [kind, type(value).__qualname__, value.name]
        if value is None or isinstance(value, _PLAIN_TYPES):
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
        return self._code(value, where)

    def _code(self, value: Any, where: str) -> list[str]:
        """Return the parts of a value that is code: a module, class, function or callable object."""
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
        if isinstance(value, partial):
            return self.function(value)
        if isinstance(value, types.FunctionType | types.MethodType):
            plain = inspect.unwrap(getattr(value, "__func__", value))
            if isinstance(plain, types.FunctionType) and _is_library(
                plain.__module__, plain.__code__.co_filename
            ):
                return ["library", plain.__module__ or "", plain.__qualname__]
            return self.function(value)
        if callable(value) and hasattr(value, "__module__") and hasattr(value, "__qualname__"):
            return ["callable", value.__module__ or "", value.__qualname__]
        raise QmtlError(
            "E_CLOSURE_VALUE",
            f"the compute function uses {where}, a {type(value).__qualname__}, which has no stable identity",
            "pass numbers, strings, lists, mappings, arrays or functions, or create it inside the function",
            name=where,
        )

    def _not_a_function(self, value: Any) -> list[str]:
        """Return the parts of a compute function that is a callable object, a class or a builtin."""
        if isinstance(value, type) or not callable(value) or isinstance(value, types.BuiltinFunctionType):
            return self.value(value, "the compute function")
        return [
            "callable",
            *self.value(value, "the compute function"),
            *self.function(type(value).__call__),
        ]

    def _named(self, value: Any, name: str, attributes: set[str]) -> list[str]:
        """Return the parts of a name from outside. Of a module or strategy, only `attributes` count."""
        if isinstance(value, types.ModuleType):
            if _is_library(value.__name__, getattr(value, "__file__", None)):
                return ["module", value.__name__]
            return ["project module", *self._attributes_of(value, attributes, name)]
        if _is_strategy(value):
            return ["strategy", *self._attributes_of(value, attributes, name)]
        return self.value(value, name)

    def _attributes_of(self, owner: Any, names: set[str], where: str) -> list[str]:
        if _is_strategy(owner):
            require_no_context(dict.fromkeys(names & {"world_id"}), "the compute function")
        parts: list[str] = []
        for name in sorted(names):
            if hasattr(owner, name):
                parts += [name, *self._named(getattr(owner, name), f"{where}.{name}", set())]
        return parts

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
        tree = class_tree(cls)
        if tree is None:
            return ["class", cls.__module__, cls.__qualname__]
        parts = ["project class", ast.dump(tree)]
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
    """Return whether code belongs to Python, an installed package or QMTL: it is hashed by name."""
    if not file:
        return True
    if file.startswith("<"):  # generated (a dataclass's methods) or typed into a REPL: the module decides
        loaded = None if module == "__main__" else sys.modules.get(module or "")
        file = getattr(loaded, "__file__", None)
        if not file:
            return False
    path = str(Path(file).resolve())
    return "site-packages" in path or path.startswith(_LIBRARY_FOLDERS)


def _free_names(function: types.FunctionType) -> dict[str, Any]:
    """Return what the function and the functions inside it take from outside, by name, without builtins.

    A closure cell hides a global of the same name.
    """
    found: dict[str, Any] = {}
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    for name, cell in cells.items():
        try:
            found[name] = cell.cell_contents
        except ValueError:  # the name is bound later, such as the function itself
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
