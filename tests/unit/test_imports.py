"""What importing a part must not bring with it."""

import subprocess
import sys

from tests.support import ROOT

ALL_WORKFLOWS = """
import importlib, pkgutil
import workflows
for module in pkgutil.walk_packages(workflows.__path__, "workflows."):
    importlib.import_module(module.name)
"""
DATABASE = ("sqlalchemy", "sqlmodel", "psycopg", "alembic")


def brought(imports: str, *modules: str) -> list[str]:
    """Run imports in a process of their own. Which of the given modules came with them."""
    script = f"{imports}\nimport sys\nprint(*sorted(set(sys.argv[1:]) & set(sys.modules)))"
    command = [sys.executable, "-c", script, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_workflows_imports_no_database() -> None:
    """They run in a sandbox that is rebuilt for each of them."""
    assert brought(ALL_WORKFLOWS, *DATABASE) == []


def test_the_command_starts_without_what_few_commands_need() -> None:
    """Each of these takes from 0.3 to 1 s."""
    assert brought("import api.cli", *DATABASE, "pandas", "plotly", "temporalio") == []
