"""A halt is on its way to the Gateway before the command has loaded."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from api.cli.early_halt import _gateway, _request, send_early
from qmtl_sdk.runtime.config import Settings, read
from qmtl_sdk.runtime.embedded import recorded_gateway
from tests.support import ROOT
from tests.support.command import Person
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("world halt w", ("/worlds/w/halt", {})),
        ("world halt --reason odd w -o json", ("/worlds/w/halt", {"reason": "odd"})),
        ("world halt w -s First", ("/worlds/w/halt", {"strategy": "First"})),
        ("world halt a/b", ("/worlds/a%2Fb/halt", {})),
        ("world halt --all --reason odd", ("/halt", {"reason": "odd"})),
        ("world halt", None),
        ("world halt v w", None),
        ("world halt w --all", None),
        ("world halt --all -s First", None),
        ("world halt w --as ana", None),
        ("world halt w --help", None),
        ("world halt w --reason=odd", None),
        ("world halt w --reason", None),
        ("world resume w", None),
        ("world", None),
        ("", None),
    ],
)
def test_only_a_halt_that_is_certain_is_sent(words: str, sent: tuple[str, dict[str, str]] | None) -> None:
    assert _request(words.split()) == sent


FILE = "gateway: {url: 'http://file:1', token: of-file}\nhome: of-file\n"


@pytest.mark.parametrize("file", ["", "{}", FILE])
@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"QMTL_GATEWAY__URL": "http://variable:2"},
        {"QMTL_GATEWAY__TOKEN": "of-variable"},
        {"QMTL_HOME": "of-variable"},
        {"QMTL_GATEWAY__URL": "http://variable:2", "QMTL_GATEWAY__TOKEN": "of-variable", "QMTL_HOME": "x"},
    ],
)
def test_gateway_and_token_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, variables: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("QMTL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if file:
        Path("qmtl.yml").write_text(file)
    config = read(Settings)
    config.local_token_path().parent.mkdir(parents=True)
    config.local_token_path().write_text("of-home\n")
    me = psutil.Process()
    gateway = {"pid": me.pid, "created": me.create_time()}
    stack = {"gateway": gateway, "gateway_url": f"http://{config.home.name}:3"}
    (config.home / "stack.json").write_text(json.dumps(stack))
    assert _gateway(os.environ) == (recorded_gateway(config), config.token)


@pytest.mark.parametrize("name", ["qmtl_gateway__url", "QMTL_GATEWAY"])
def test_variables_in_another_form_are_left_to_the_command(name: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  it says nothing to anybody
        _gateway({name: "{}", "QMTL_GATEWAY__URL": "http://variable:2", "QMTL_GATEWAY__TOKEN": "t"})


def test_a_configuration_file_that_is_not_there_is_left_to_the_command(tmp_path: Path) -> None:
    """Without its file the address would be that of another stack."""
    variables = {"QMTL_GATEWAY__URL": "http://variable:2", "QMTL_GATEWAY__TOKEN": "t"}
    with pytest.raises(FileNotFoundError):
        _gateway({**variables, "QMTL_CONFIG": str(tmp_path / "missing.yml")})


def test_whoever_has_got_the_port_of_a_dead_gateway_gets_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QMTL_HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(0.5)
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens" / "operator").write_text("secret")
        record = {"pid": os.getpid(), "created": psutil.Process().create_time() - 60}
        (tmp_path / "stack.json").write_text(json.dumps({"gateway": record, "gateway_url": url}))
        thread = send_early(["world", "halt", "w"])
        assert thread is not None
        thread.join(10)
        with pytest.raises(TimeoutError):
            stranger.accept()


def test_the_world_is_halted_while_the_command_still_loads(machine: Machine, tmp_path: Path) -> None:
    """Here it never loads: what it imports next waits for ever."""
    database = machine.database()
    try:
        desk = Desk(database, "early")
        (tmp_path / "typer.py").write_text("import time\ntime.sleep(600)\n")
        env = {
            **os.environ,
            "QMTL_GATEWAY__URL": machine.url,
            "QMTL_HOME": str(machine.home),
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        }
        command = [sys.executable, "-m", "api.cli", "world", "halt", "early", "--reason", "odd"]
        with subprocess.Popen(command, env=env, cwd=tmp_path) as process:
            try:
                wait_for(lambda: desk.fence_row().halted, "the halt")
            finally:
                process.kill()
        assert desk.fence_row().halted.endswith(": odd")
    finally:
        database.close()


def test_a_halt_that_comes_twice_is_one_halt(machine: Machine, tmp_path: Path) -> None:
    database = machine.database()
    try:
        desk = Desk(database, "twice")
        person = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
        assert person.types("world", "halt", "twice", "--reason", "odd").stdout == "halted: twice\n"
        assert desk.fence_row().halted.endswith(": odd")
        entries = person.reads("world", "audit", "twice")["entries"]
        assert [entry["action"] for entry in entries].count("world.halted") == 1
    finally:
        database.close()
