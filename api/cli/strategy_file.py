"""Load a strategy class from an author's file."""

import inspect
import sys
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from qmtl_sdk.contracts.errors import QmtlError, nearest

if TYPE_CHECKING:
    from qmtl_sdk.nodes.strategy import Strategy


def load_strategy(text: str) -> "type[Strategy]":
    """Return the class that `FILE[:CLASS]` names. Raises QmtlError (E_STRATEGY_FILE)."""
    from qmtl_sdk.nodes.strategy import Strategy

    file, _, name = text.partition(":")
    module = _load_module(Path(file))
    found: dict[str, type[Strategy]] = {
        key: value
        for key, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, Strategy) and value.__module__ == module.__name__
    }
    names = ", ".join(found)
    if not found:
        raise _fault(f"{file} has no class derived from Strategy", "write one")
    if name and name not in found:
        raise _fault(f"{file} has no strategy {name}{nearest(name, list(found))}", f"it has: {names}")
    if not name and len(found) > 1:
        raise _fault(f"{file} has several strategies: {names}", f"name one: {file}:{next(iter(found))}")
    return found[name or next(iter(found))]


def _load_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise _fault(f"there is no file {path}", "name a Python file with a Strategy class")
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise _fault(f"{path} is not a Python file", "name a file that ends in .py")
    module = module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except QmtlError:
        raise
    except Exception as error:  # an author's file may raise anything; show its line, not our stack
        line = _line_of(error, path)
        raise _fault(f"{path}, line {line}: {type(error).__name__}: {error}", "correct the file") from error
    return module


def _line_of(error: Exception, path: Path) -> str:
    """Return the line of the author's file at which an error was raised; `?` where it is not known."""
    if isinstance(error, SyntaxError):
        return str(error.lineno)
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    return str(lines[-1]) if lines else "?"


def _fault(message: str, remedy: str) -> QmtlError:
    return QmtlError("E_STRATEGY_FILE", message, remedy)
