"""A halt is on its way to the Gateway before the command has loaded."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import psutil
import pytest

from activities.settings import GatewaySettings, Settings
from api.cli import early_halt
from api.cli.early_halt import EarlyHalt, Halted, NotSentError, Request, gateway, request_of
from qmtl_sdk.contracts.orders import MAX_REASON
from qmtl_sdk.contracts.worlds import WorldId
from qmtl_sdk.runtime import config
from qmtl_sdk.runtime.config import Section, read
from qmtl_sdk.runtime.embedded import recorded_gateway
from tests.support import ROOT
from tests.support.command import Person
from tests.support.desk import Desk
from tests.support.machine import Machine, wait_for
from tests.support.one_answer import answering_once


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        ("world halt w", Request("w")),
        ("world halt --reason odd w -o json", Request("w", reason="odd")),
        ("world halt w --reason " + 400 * "o", Request("w", reason=300 * "o")),
        ("world halt w -s First", Request("w", "First")),
        ("world halt w --flatten --reason odd", Request("w", reason="odd")),
        ("world flatten w", None),
        ("world halt --all --reason odd", Request(None, reason="odd")),
        ("world halt a/b", None),
        ("world halt ..", None),
        ("world halt W", None),
        ("world halt w -o xml", None),
        ("world halt", None),
        ("world halt v w", None),
        ("world halt w --all", None),
        ("world halt --all -s First", None),
        ("world halt w --as ana", None),
        ("world halt w --help", None),
        ("world halt w --reason=odd", None),
        ("world halt w --reason", None),
        ("world halt -- w", None),
        ("world resume w", None),
        ("world", None),
        ("", None),
    ],
)
def test_only_a_halt_that_is_certain_is_sent(words: str, sent: Request | None) -> None:
    assert request_of(words.split()) == sent


def test_the_limits_of_what_is_sent_are_those_of_the_contracts() -> None:
    (field,) = get_args(WorldId)[1:]
    assert field.metadata[0].pattern == f"^{early_halt._WORLD.pattern}$"
    assert early_halt._MAX_REASON == MAX_REASON
    assert early_halt._ADDRESS_CHARACTERS == config._ADDRESS_CHARACTERS


def test_the_names_of_settings_are_those_of_the_configuration() -> None:
    """A variable with another name may be a mistyped address."""
    fields = Settings.model_fields
    sections = {name for name, field in fields.items() if isinstance(field.annotation, type(Section))}
    assert {name.lower() for name in early_halt._OTHER_SECTIONS} == sections - {"gateway"}
    assert {name.lower() for name in early_halt._GATEWAY_KEYS} == set(GatewaySettings.model_fields)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without a configuration, as the current one."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("QMTL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def record(home: Path, url: str, process: psutil.Process | None = None, off_s: float = 0.0) -> None:
    """Record a process, this one by default, as the Gateway of a stack, with its start off by `off_s`."""
    process = process or psutil.Process()
    home.mkdir(parents=True, exist_ok=True)
    gateway = {"pid": process.pid, "created": process.create_time() + off_s}
    (home / "stack.json").write_text(json.dumps({"gateway": gateway, "gateway_url": url}))
    (home / "tokens").mkdir(exist_ok=True)
    (home / "tokens" / "operator").write_text("of-home\n")


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"QMTL_GATEWAY__URL": "http://variable:2"},
        {"QMTL_GATEWAY__TOKEN": "of-variable"},
        {"QMTL_HOME": "of-variable"},
        {"QMTL_HOME": ""},
        {"QMTL_HOM": "of another program", "QMTL_GATEWAY__RATE_PER_S": "1", "QMTL_ORDERS__LIVE_BROKER": "x"},
        {"QMTL_GATEWAY__URL": "", "QMTL_GATEWAY__TOKEN": ""},
        {"QMTL_GATEWAY__URL": "https://variable/qmtl/", "QMTL_GATEWAY__TOKEN": "t", "QMTL_HOME": "x"},
        {"QMTL_GATEWAY_PORT": "tcp://10.0.0.1:8000", "QMTL_GATEWAY_SERVICE_HOST": "10.0.0.1"},  # Kubernetes'
    ],
)
def test_gateway_and_token_are_those_of_the_command(
    bare: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = read(Settings)
    record(config.home, f"http://{config.home.name or 'here'}:3")
    address, token = gateway(os.environ)
    assert (address.geturl(), token) == (recorded_gateway(config), config.token)


@pytest.mark.parametrize(
    "variables",
    [
        {"qmtl_gateway__url": "http://variable:2"},
        {"QMTL_GATEWAY": "{}"},
        {"QMTL_GATWAY__URL": "http://variable:2"},
        {"QMTL_GATEWAY__UR": "http://variable:2"},
        {"QMTL_GATEWAY_URL": "http://variable:2"},
        {"QMTL_GATEWAY_PORT": "8001"},
        {"QMTL_GATEWAY__URL": "http://variable:2\n"},
        {"QMTL_GATEWAY__URL": "http://variable:2/with a space"},
        {"QMTL_CONFIG": "missing.yml"},
        {"QMTL_GATEWAY__URL": "htps://variable"},
        {"QMTL_GATEWAY__URL": "//variable"},
        {"QMTL_GATEWAY__URL": "http://user:password@variable"},
    ],
)
def test_what_may_be_mistaken_is_left_to_the_command(bare: Path, variables: dict[str, str]) -> None:
    """With its mistake overlooked, the address would be that of another stack."""
    record(bare / "data" / "qmtl", "http://home:3")
    assert gateway({"XDG_DATA_HOME": str(bare / "data")})[1] == "of-home"
    with pytest.raises(ValueError):  # noqa: PT011  it says nothing to anybody
        gateway(variables)


def test_a_configuration_file_is_left_to_the_command(bare: Path) -> None:
    record(bare / "data" / "qmtl", "http://home:3")
    Path("qmtl.yml").write_text("gatway: {url: 'http://file:1'}\n")
    with pytest.raises(ValueError):  # noqa: PT011  it says nothing to anybody
        gateway({})


@pytest.mark.parametrize("zombie", [False, True])
def test_whoever_has_got_the_port_of_a_dead_gateway_gets_no_token(
    bare: Path, monkeypatch: pytest.MonkeyPatch, zombie: bool
) -> None:
    monkeypatch.setenv("QMTL_HOME", str(bare))
    with (
        socket.create_server(("127.0.0.1", 0)) as stranger,
        subprocess.Popen([sys.executable, "-c", ""]) as ended,  # a zombie until it is waited for
    ):
        process = psutil.Process(ended.pid)
        wait_for(lambda: process.status() == psutil.STATUS_ZOMBIE, "end of the process")
        stranger.settimeout(0.5)
        url = f"http://127.0.0.1:{stranger.getsockname()[1]}"
        record(bare, url, psutil.Process(ended.pid if zombie else None), off_s=0 if zombie else -60)
        with pytest.raises(NotSentError):
            EarlyHalt(Request("w")).result()
        with pytest.raises(TimeoutError):
            stranger.accept()


def served(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> Halted | None:
    """What an early halt takes for the outcome where a Gateway answers so. Raises NotSentError."""
    with answering_once(answer) as (url, requests):
        monkeypatch.setenv("QMTL_GATEWAY__URL", url)
        monkeypatch.setenv("QMTL_GATEWAY__TOKEN", "t")
        try:
            return EarlyHalt(Request("w", reason="odd")).result()
        finally:
            assert b"authorization: Bearer t" in requests[0]


HEAD = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


def test_the_command_takes_the_answer_of_its_early_request(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert served(HEAD + b'{"world_id": "w"}', monkeypatch) == Halted(["w"])
    for other in (b"", b"<h1>", b"[1]", b'{"world_id": "v"}', b'{"world_id": null}', b"[" * 100_000):
        assert served(HEAD + other, monkeypatch) is None
    for other in (b"", HEAD.replace(b"200", b"500") + b"{}", HEAD.replace(b"200", b"302")):
        assert served(other, monkeypatch) is None
    for refused in (b"401", b"403", b"422", b"429"):
        with pytest.raises(NotSentError):
            served(HEAD.replace(b"200", refused) + b"{}", monkeypatch)
    with pytest.raises(NotSentError):
        served(HEAD.replace(b"200", b"503") + b'{"code": "E_HALT_INCOMPLETE"}', monkeypatch)


def test_a_halt_goes_on_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    early_halt.send(["world", "halt", "w"])
    with pytest.raises(NotSentError):
        early_halt.result()


@contextmanager
def halting_while_it_loads(machine: Machine, folder: Path, **env: str) -> Iterator["subprocess.Popen[str]"]:
    """Halt a new world, named as the folder, by a command that never loads: its next import waits for ever.

    Begins once the world is halted.
    """
    database = machine.database()
    try:
        desk = Desk(database, folder.name)
        (folder / "typer.py").write_text("import time\ntime.sleep(600)\n")
        whole = {
            **os.environ,
            "QMTL_GATEWAY__URL": machine.url,
            "QMTL_HOME": str(machine.home),
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            **env,
        }
        command = [sys.executable, "-m", "api.cli", "world", "halt", desk.world, "--reason", "odd\x1b"]
        with subprocess.Popen(command, env=whole, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_for(lambda: desk.fence_row().halted, "the halt")
                assert desk.fence_row().halted.endswith(": odd\ufffd")
                yield process
            finally:
                process.kill()
    finally:
        database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder whose name is a world's."""
    found = tmp_path / f"w{uuid.uuid4().hex[:8]}"
    found.mkdir()
    return found


def test_the_world_is_halted_while_the_command_still_loads(machine: Machine, folder: Path) -> None:
    with halting_while_it_loads(machine, folder) as process:
        assert process.poll() is None


def test_a_halt_is_in_the_store_before_the_command_has_loaded_where_nobody_listens(
    machine: Machine, folder: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"  # nobody's, once this socket is closed
    nobody = {"QMTL_GATEWAY__URL": url, "QMTL_GATEWAY__DATABASE_DSN": machine.dsn}
    with halting_while_it_loads(machine, folder, **nobody) as process:
        assert process.poll() is None


def test_an_interrupted_halt_says_that_it_may_be_done(machine: Machine, folder: Path) -> None:
    with halting_while_it_loads(machine, folder) as process:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130
        assert said == "qmtl: interrupted; the halt may have taken effect: qmtl world status WORLD shows it\n"


def test_a_halt_is_requested_once(machine: Machine, tmp_path: Path) -> None:
    """The second request of a halt of all worlds met the first, and called its worlds not halted."""
    database = machine.database()
    try:
        desk = Desk(database, "once")
        person = Person(tmp_path, QMTL_GATEWAY__URL=machine.url, QMTL_HOME=str(machine.home))
        done = person.types("world", "halt", "once", "--reason", "o\x1bdd" + 400 * "d")
        assert done.stdout == "halted: once\n", done.stderr
        assert ": o\ufffddd" in desk.fence_row().halted
        entries = person.reads("world", "audit", "once")["entries"]
        assert [entry["action"] for entry in entries].count("world.halted") == 1
    finally:
        database.close()
