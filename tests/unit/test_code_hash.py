"""A compute function's hash: blind to looks, not to meaning."""

import ast
import gc
import io
import random
import subprocess
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from qmtl_sdk import QmtlError, Strategy
from qmtl_sdk.nodes.code_hash import _is_library, code_hash
from qmtl_sdk.reports.metrics import measure

FACTOR = 2


def module(source: str, name: str = "authors") -> types.ModuleType:
    """A project module made of source text, as if it were a file."""
    import linecache

    filename = f"/project/{name}_{abs(hash(source))}.py"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    found = types.ModuleType(name)
    found.__file__ = filename
    exec(compile(source, filename, "exec"), found.__dict__)
    return found


def of(source: str) -> str:
    return code_hash(module(source).f)


PLAIN = "def f(view):\n    return view * 2\n"


@pytest.mark.parametrize(
    "same",
    [
        'def f(view):\n    "says what it does"\n    return view * 2\n',
        "def f(view):\n    # a comment\n    return (view\n            * 2)\n",
        "\n\n\ndef f(view: object) -> float:\n    return view*2\n",
    ],
)
def test_looks_do_not_matter(same: str) -> None:
    assert of(same) == of(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        "def f(view):\n    return view * 3\n",
        "def f(view):\n    return 2 * view\n",
        "def f(view, k=1):\n    return view * 2\n",
        "def f(view):\n    view += 1\n    return view * 2\n",
    ],
)
def test_meaning_does(other: str) -> None:
    assert of(other) != of(PLAIN)


def test_a_project_function_that_it_calls_is_part_of_it() -> None:
    calls = "def g(x):\n    return x + {}\n\ndef f(view):\n    return g(view)\n"
    assert of(calls.format(1)) != of(calls.format(2))
    deeper = (
        "K = {}\n\ndef h(x):\n    return x * K\n\n"
        "def g(x):\n    return h(x)\n\ndef f(view):\n    return g(view)\n"
    )
    assert of(deeper.format(1)) != of(deeper.format(2))


def test_a_function_of_a_project_module_is_part_of_it() -> None:
    def using(constant: int) -> str:
        return code_hash(
            _with_module(
                module(f"def g(x):\n    return x + {constant}\n\ndef unused(x):\n    return 1\n", "helpers")
            )
        )

    assert using(1) != using(2)
    assert using(1) == using(1)


def test_a_users_package_named_like_one_of_qmtl_is_project_code(tmp_path: Path) -> None:
    """A subprocess imports the packages, so that QMTL's own stay loaded here."""
    packages = ("activities", "api", "temporal", "workflows")
    program = f"""
import sys
from importlib import import_module
sys.path.insert(0, {str(tmp_path)!r})
from qmtl_sdk.nodes.code_hash import code_hash
for package in {packages!r}:
    functions = import_module(package + ".functions")
    print(code_hash(functions.by_name), code_hash(functions.by_module))
"""
    for package in packages:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "functions.py").write_text(
            f"from {package} import helpers\n"
            f"from {package}.helpers import g\n\n\n"
            "def by_name(view):\n    return g(view)\n\n\n"
            "def by_module(view):\n    return helpers.g(view)\n"
        )

    def hashes(constant: int) -> list[str]:
        for package in packages:
            (tmp_path / package / "helpers.py").write_text(f"def g(view):\n    return view + {constant}\n")
        command = [sys.executable, "-B", "-c", program]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, check=True
        ).stdout.split()

    pairs = list(zip(hashes(1), hashes(2), strict=True))
    assert len(pairs) == 2 * len(packages)
    assert all(one != other for one, other in pairs)


def test_functions_of_qmtl_itself_are_hashed_by_name() -> None:
    assert _is_library(measure.__module__, measure.__code__.co_filename)
    assert not _is_library("tests.unit.test_code_hash", __file__)


def _with_module(helpers: types.ModuleType) -> Callable[[object], object]:
    return lambda view: helpers.g(view)


def test_globals_defaults_and_partials_are_part_of_it() -> None:
    assert of("K = 1\ndef f(view):\n    return view * K\n") != of(
        "K = 2\ndef f(view):\n    return view * K\n"
    )
    assert of("def f(view, k=1):\n    return view * k\n") != of("def f(view, k=2):\n    return view * k\n")
    f = module("def f(view, k):\n    return view * k\n").f
    assert code_hash(partial(f, k=1)) != code_hash(partial(f, k=2))


def test_two_lambdas_of_one_line_are_two_functions() -> None:
    a, b = (lambda view: view + 1), (lambda view: view + 2)
    assert code_hash(a) != code_hash(b)


def test_closure_values_of_every_kind_count() -> None:
    def closing(value: object) -> Callable[[object], object]:
        return lambda view: (view, value)

    values = [
        1,
        "1",
        1.5,
        None,
        True,
        [1],
        (1,),
        {1},
        {"a": 1},
        np.array([1.0]),
        np.array([2.0]),
        np.float64(1),
        b"1",
        ValueError,
        len,
    ]
    assert len({code_hash(closing(value)) for value in values}) == len(values)


def test_what_a_strategy_holds_counts_where_the_function_reads_it() -> None:
    class Mine(Strategy):
        def __init__(self, width: float, other: float) -> None:
            super().__init__()
            self.width = width
            self.other = other

        def band(self, view: object) -> object:
            return (view, self.width)

    assert code_hash(Mine(1, 1).band) != code_hash(Mine(2, 1).band)
    assert code_hash(Mine(1, 1).band) == code_hash(Mine(1, 2).band)


@pytest.mark.parametrize("value", [io.StringIO(), random.Random(1), object()])
def test_a_value_without_identity_is_refused_by_name(value: object) -> None:
    with pytest.raises(QmtlError, match="uses value") as caught:
        code_hash(lambda view: (view, value))
    assert caught.value.code == "E_CLOSURE_VALUE"


def test_without_source_the_bytecode_decides() -> None:
    functions = [eval(f"lambda view: view * {n}") for n in (2, 3, 2)]
    hashes = [code_hash(function) for function in functions]
    assert hashes[0] != hashes[1]
    assert hashes[0] == hashes[2]


def test_recursion_ends() -> None:
    assert of("def f(n):\n    return n if n < 1 else f(n - 1)\n").startswith("blake3:")
    mutual = "def g(n):\n    return f(n)\n\ndef f(n):\n    return n if n < 1 else g(n - 1)\n"
    assert of(mutual).startswith("blake3:")


def test_a_tree_that_is_built_meanwhile_fails_no_hash() -> None:
    """A logged traceback builds one, also during garbage collection: submissions ended with SystemError."""

    class Noisy:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            ast.parse("a + b")

    functions = (f"def f{n}(a, b):\n    return [a + b * {n} for a in range(b) if a]\n" for n in range(300))
    source = PLAIN + "".join(functions)
    expected = of(source)
    gc.collect()
    for found in (module(f"{source}# {n}\n") for n in range(3)):
        Noisy()
        assert code_hash(found.f) == expected
