"""`qmtl world halt`, sent to the Gateway before the command has loaded, since orders pass meanwhile.

Only what is certain is sent, and nobody waits for the answer: the command then halts as usual, and says what
is wrong or that it is done. A halt that arrives twice is one halt. What is not certain here is left to the
command alone: arguments in another form, `--as`, unusual variables, and a file that cannot be read.
"""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

# Seconds to wait for the Gateway, as the command does.
_LIMIT_S = 1.0

_VALUES = {"-s": "strategy", "--strategy": "strategy", "--reason": "reason", "-o": "", "--output": ""}
"""Options with a value, and what it is in the request; empty where it is nothing."""


def send_early(arguments: Sequence[str]) -> threading.Thread | None:
    """Start to send the halt that the arguments of `qmtl` ask for; None where that is not certain."""
    request = _request(arguments)
    if request is None:
        return None
    found = threading.Thread(target=_send, args=request, name="early-halt", daemon=True)
    found.start()
    return found


def _request(arguments: Sequence[str]) -> tuple[str, dict[str, str]] | None:
    """Return path and body of the request."""
    if list(arguments[:2]) != ["world", "halt"]:
        return None
    worlds, every, body, rest = list[str](), False, dict[str, str](), list(arguments[2:])
    while rest:
        word = rest.pop(0)
        if word in _VALUES and rest:
            body[_VALUES[word]] = rest.pop(0)
        elif word == "--all":
            every = True
        elif word.startswith("-"):
            return None
        else:
            worlds.append(word)
    body.pop("", None)
    if every and not worlds and "strategy" not in body:
        return "/halt", body
    if len(worlds) == 1 and not every:
        return f"/worlds/{quote(worlds[0], safe='')}/halt", body
    return None


def _send(path: str, body: dict[str, str]) -> None:
    """Send the halt. Whatever fails here, the command meets as well, and says it."""
    with suppress(Exception):
        url, token = _gateway(os.environ)
        import http.client  # takes a tenth of what the command's imports take

        address = urlsplit(url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.netloc, timeout=_LIMIT_S)
        try:
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection.request("POST", address.path.rstrip("/") + path, json.dumps(body), headers)
            connection.getresponse().read()
        finally:
            connection.close()


def _gateway(variables: Mapping[str, str]) -> tuple[str, str]:
    """Return the Gateway's address and the token, as `qmtl_sdk.runtime.config.Settings` reads them.

    Raises an error where another reading is possible.
    """
    unusual = [name for name in variables if name.upper().startswith("QMTL_") and name != name.upper()]
    if unusual or "QMTL_GATEWAY" in variables:
        raise ValueError(unusual)
    file = _file(variables)
    given = {**(file.get("gateway") or {})}
    for key in ("url", "token"):
        given[key] = variables.get(f"QMTL_GATEWAY__{key.upper()}", given.get(key))
    home = variables.get("QMTL_HOME", file.get("home"))
    if home is None:
        import platformdirs

        home = platformdirs.user_data_dir("qmtl")
    url = given["url"] or _embedded(Path(home))
    return url, given["token"] or (Path(home) / "tokens" / "operator").read_text().strip()


def _file(variables: Mapping[str, str]) -> dict[str, Any]:
    """Read the configuration file. Raises OSError where the variable names none. (Any: YAML.)"""
    named = variables.get("QMTL_CONFIG")
    path = Path(named or "qmtl.yml")
    if not named and not path.exists():
        return {}
    import yaml

    found: dict[str, Any] = yaml.safe_load(path.read_text()) or {}
    return found


def _embedded(home: Path) -> str:
    """Return the address of the embedded stack's Gateway. Raises an error unless its process runs.

    The token goes to nobody else who has got its port.
    """
    import psutil

    stack = json.loads((home / "stack.json").read_text())
    process = psutil.Process(stack["gateway"]["pid"])
    if abs(process.create_time() - stack["gateway"]["created"]) >= 1:
        raise ProcessLookupError
    return str(stack["gateway_url"])
