"""Every code block of README and docs runs, or is checked by the parser of what it is."""

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from api.cli.commands import app
from qmtl_sdk.contracts.applies import ApplyRequest
from qmtl_sdk.contracts.instruments import InstrumentConstraints
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from qmtl_sdk.contracts.worlds import WorldSpec, parse_world
from tests.support import ROOT
from tests.support.command import Person
from tests.support.documents import Block, blocks, fences, pages
from tests.support.twofold import machine_for

CHECKED = {"python", "bash", "yaml", "toml"}
# Mermaid blocks are drawings, which nothing runs.
KNOWN = CHECKED | {"mermaid"}
# Builds each strategy of a page as a submission would.
BUILD = """
from qmtl_sdk import Strategy as _Strategy
from qmtl_sdk.nodes.strategy import BuiltStrategy as _BuiltStrategy
for _found in _Strategy.__subclasses__():
    _BuiltStrategy(_found)
"""
PYTHON_PAGES = sorted({block.page for block in blocks("python") if not block.not_run})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Person]:
    """A reader in the source tree, with a stack of their own and the example's world."""
    machine = machine_for(tmp_path_factory.mktemp("documents"))
    try:
        machine.up()
        person = Person(ROOT, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
        created = person.types("world", "create", "examples/equities.yml")
        assert created.returncode == 0, created.stderr
        yield person
    finally:
        machine.close()


@pytest.mark.parametrize("page", pages())
def test_every_block_has_a_known_language(page: str) -> None:
    found = blocks(page=page)
    assert len(found) == fences(page)
    assert {block.language for block in found} <= KNOWN


def test_blocks_that_do_not_run_are_few() -> None:
    """Lower the limit when a block begins to run."""
    assert len([block for block in blocks() if block.not_run]) <= 7


@pytest.mark.parametrize("page", PYTHON_PAGES)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: str, reader: Person, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    code = "\n".join(block.text for block in blocks("python", page=page) if not block.not_run)
    script.write_text(code + BUILD)
    done = reader.runs(sys.executable, str(script))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [b for b in blocks("bash") if not b.not_run], ids=str)
def test_the_commands_of_a_page_run(block: Block, reader: Person) -> None:
    done = reader.runs("bash", "-euc", block.text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_a_page_names_commands_and_options_that_exist(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "qmtl":
            parse(words[1:])


def test_an_option_or_a_command_that_does_not_exist_is_found() -> None:
    with pytest.raises(Exception, match="No such option: --nonsense"):
        parse(["world", "create", "x.yml", "--nonsense"])
    with pytest.raises(Exception, match="No such command 'nonsense'"):
        parse(["world", "nonsense"])


def parse(words: list[str]) -> None:
    """Parse a command line without running it.

    Raises the UsageError of Typer's own copy of Click, which it does not export, where the line is wrong.
    """
    command: Any = typer.main.get_command(app)  # its classes are not exported either
    context = command.context_class(command, info_name="qmtl")
    while hasattr(command, "resolve_command"):
        name, command, words = command.resolve_command(context, words)
        context = command.context_class(command, info_name=name, parent=context)
    command.parse_args(context, list(words))


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_world_a_policy_a_request_or_a_configuration(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    if block.not_run:
        return
    if "world" in content:
        _, policy = parse_world(block.text)
        assert policy
        policy_from(policy)
    elif content.keys() <= WorldSpec.model_fields.keys():
        WorldSpec.model_validate({"world": "w", **content})  # a part of one
    elif "lot" in content:
        InstrumentConstraints.model_validate(content)
    elif "worlds" in content:
        MultiWorldRebalanceRequest.model_validate(content)
    elif "to" in content:
        ApplyRequest.model_validate({"run_id": "r", **content})
    elif {"selection", "preset"} & content.keys():
        policy_from(content)
    else:
        validate_configuration(block.text, tmp_path)


def validate_configuration(text: str, folder: Path) -> None:
    """Let `qmtl config validate` read it: a program of its own, since configuration is read once."""
    (folder / "qmtl.yml").write_text(text)
    env = {key: value for key, value in os.environ.items() if not key.startswith("QMTL_")}
    command = [sys.executable, "-m", "api.cli", "config", "validate"]
    env |= {"PYTHONPATH": str(ROOT), "BINANCE_KEY": "key", "BINANCE_SECRET": "secret"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_parses(block: Block) -> None:
    assert tomllib.loads(block.text)
