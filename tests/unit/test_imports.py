"""Workflows run in a sandbox that is rebuilt for each of them: a database driver must not come with them."""

import subprocess
import sys

from tests.support import ROOT

IMPORT_WORKFLOWS = """
import importlib, pkgutil, sys
import workflows
for module in pkgutil.walk_packages(workflows.__path__, "workflows."):
    importlib.import_module(module.name)
print(*sorted({"sqlalchemy", "sqlmodel", "psycopg", "alembic"} & set(sys.modules)))
"""


def test_importing_the_workflows_imports_no_database() -> None:
    command = [sys.executable, "-c", IMPORT_WORKFLOWS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
