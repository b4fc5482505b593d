"""Imports point one way, and only the fence writes its tables.

These are the fence row, activations, the order log, open orders, acknowledgements and Gateway leases.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from qmtl_sdk.nodes.syntax import parsed

ROOT = Path(__file__).parents[2]
PACKAGES = ("qmtl_sdk", "workflows", "activities", "temporal", "api")
OWNED = {
    "fence": "FenceRow",
    "activation": "ActivationRow",
    "order_log": "OrderLogRow",
    "open_order": "OpenOrderRow",
    "flatten": "FlattenRow",
    "flattening": "FlatteningRow",
    "ack": "AckRow",
    "gateway": "GatewayRow",
    "reconciliation": "ReconciliationRow",
}
OWNED_ROWS = set(OWNED.values())
OWNED_TABLES = re.compile(rf"\b(?:insert into|update|delete from)\s+(?:{'|'.join(OWNED)})\b", re.I)
NAMED_TABLES = tuple(f"metadata.tables['{name}']" for name in OWNED)


IMPORT_THE_SDK = """
import importlib, pkgutil, sys
import qmtl_sdk
for module in pkgutil.walk_packages(qmtl_sdk.__path__, "qmtl_sdk."):
    importlib.import_module(module.name)
print(*sorted({"activities", "workflows", "temporal", "api"} & set(sys.modules)))
"""


def outside_the_fence() -> list[Path]:
    """Every module of the packages but those of the fence, the table definitions and the migrations."""
    folders = (ROOT / "activities" / "fence", ROOT / "activities" / "storage" / "migrations")
    tables = ROOT / "activities" / "storage" / "tables.py"
    modules = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in modules if path != tables and not any(path.is_relative_to(f) for f in folders)]


def writes(source: str) -> list[str]:
    """What a module writes that is the fence's: line and reason."""
    tree = parsed(source)
    found = []
    fences = {"fence"} | {
        argument.arg
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for argument in node.args.args
        if argument.annotation is not None and ast.unparse(argument.annotation) in OWNED_ROWS
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in OWNED_ROWS:
                found.append(f"{node.lineno}: makes a {node.func.id}")
            if node.func.id in ("delete", "insert", "update") and node.args:
                table = ast.unparse(node.args[0])
                if table in OWNED_ROWS:
                    found.append(f"{node.lineno}: {node.func.id}s {table}")
            if node.func.id == "table_of" and node.args and ast.unparse(node.args[0]) in OWNED_ROWS:
                found.append(f"{node.lineno}: takes the table of {ast.unparse(node.args[0])}")
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AugAssign) else targets
        for target in (part for item in targets for part in ast.walk(item)):
            if isinstance(target, ast.Attribute) and ast.unparse(target.value) in fences:
                found.append(f"{node.lineno}: sets {ast.unparse(target)}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and OWNED_TABLES.search(node.value):
            found.append(f"{node.lineno}: writes a table in SQL")
        if isinstance(node, ast.Subscript) and ast.unparse(node).endswith(NAMED_TABLES):
            found.append(f"{node.lineno}: takes a table by its name")
    return found


def test_imports_keep_the_contracts_of_the_layers() -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout


def test_importing_the_sdk_imports_no_package_above_it() -> None:
    command = [sys.executable, "-c", IMPORT_THE_SDK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_only_the_fence_writes_what_is_the_fences() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{fault}"
        for path in outside_the_fence()
        for fault in writes(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "tx.session.add(FenceRow(world_id='w'))",
        "fence.epoch += 1",
        "fence.state, fence.holder = 'open', ''",
        "def f(row: FenceRow) -> None: row.halted = ''",
        "tx.session.execute(delete(OpenOrderRow))",
        "connection.execute(text('UPDATE fence SET epoch = 2'))",
        "LOG = SQLModel.metadata.tables['order_log']",
        "LOG = table_of(OrderLogRow)",
    ],
)
def test_a_write_outside_the_fence_is_found(line: str) -> None:
    assert writes(line) != []
