"""What README and docs show is true."""

import os
import re
import subprocess
import sys

import pytest
import yaml

from activities.fence.rules import CHECKS
from api.auth.route_roles import ROUTES
from qmtl_sdk.contracts.metrics import METRICS
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.worlds import parse_world
from tests.support import ROOT
from tests.support.machine import Machine


def blocks(file: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / file).read_text(), re.DOTALL)


def test_the_readmes_strategy_is_the_example_and_runs(machine: Machine) -> None:
    assert blocks("README.md", "python") == [(ROOT / "examples" / "first_strategy.py").read_text()]
    assert output_of("first_strategy.py", machine).startswith("First in equities: active, rank ")


def test_the_example_of_a_pipeline_runs(machine: Machine) -> None:
    assert output_of("intent_first.py", machine).startswith("IntentFirst in equities: active, rank ")


def output_of(name: str, machine: Machine) -> str:
    """What an example prints."""
    example = ROOT / "examples" / name
    env = {
        **os.environ,
        "QMTL_GATEWAY__URL": machine.url,
        "QMTL_HOME": str(machine.home),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, str(example)], env=env, capture_output=True, text=True, timeout=120, cwd=machine.home
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_worlds_and_policies_of_the_docs_parse() -> None:
    spec, policy = parse_world((ROOT / "examples" / "equities.yml").read_text())
    assert spec.world == "equities"
    assert policy
    policy_from(policy)
    for text in blocks("README.md", "yaml"):
        _, policy = parse_world(text)
        assert policy
        policy_from(policy)
    for text in blocks("docs/policy.md", "yaml"):
        policy_from(yaml.safe_load(text))


def test_the_docs_list_every_metric() -> None:
    listed = dict(
        re.findall(r"^\| `(\w+)` \| (.+?) \|$", (ROOT / "docs" / "policy.md").read_text(), re.MULTILINE)
    )
    assert listed.keys() == set(METRICS.names())


def test_the_docs_list_the_checks_of_the_fence_in_their_order() -> None:
    table = (ROOT / "docs" / "applies.md").read_text().split("Checks, in order:")[1].split("## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", table, re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(cells)) == [reason.value for reason in CHECKS]


def test_the_docs_list_every_route_with_its_role() -> None:
    """The table of docs/access.md is the one that the Gateway goes by."""
    listed = re.findall(
        r"^\| `(\w+) ([^`]+)` \| (\S+) \| (.+?) \|$", (ROOT / "docs" / "access.md").read_text(), re.MULTILINE
    )
    assert {(method, path): (role, world) for method, path, role, world in listed} == {
        key: (entry.role.value if entry.role else "anyone", entry.world) for key, entry in ROUTES.items()
    }


@pytest.mark.parametrize(
    "file", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(file: str) -> None:
    found = re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / file).read_text())
    assert [link for link in found if not ((ROOT / file).parent / link).exists()] == []
