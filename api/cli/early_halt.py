"""The request of `qmtl world halt`, sent while the command still loads, since orders pass meanwhile.

The command takes the answer, or what its absence says, as if it had sent the request itself. Only what is
certain is sent. The rest is left to the command: arguments in another form, `--as`, a configuration file,
and variables that may be a mistyped address.
"""

import json
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

LIMIT_S = 1.0
"""Seconds that a Gateway has to answer a halt before the store is halted without it."""

# Seconds to wait for an answer at least, once the command has loaded.
_LEAST_WAIT_S = 0.1

# The form of a world's id, as the contracts have it.
_WORLD = re.compile(r"[a-z0-9][a-z0-9_\-]{0,63}")

# Characters of a reason, as the contracts have it.
_MAX_REASON = 300

# Options with a value, and the field of the request's body that it fills; none: it is not sent.
_FIELDS = {"-s": "strategy", "--strategy": "strategy", "--reason": "reason", "-o": None, "--output": None}

# Sections of the configuration that do not concern the Gateway's address, and the keys of the one that does.
_OTHER_SECTIONS = {"CACHE", "EVENTS", "ORDERS", "TEMPORAL"}
_GATEWAY_KEYS = {
    "DATABASE_BACKEND",
    "DATABASE_DSN",
    "HOST",
    "LEASE_HEARTBEAT_S",
    "MAX_ARTIFACT_BYTES",
    "MAX_BODY_BYTES",
    "MAX_SOCKETS",
    "PORT",
    "RATE_PER_S",
    "SESSION_LEASE_S",
    "TOKEN",
    "URL",
}


@dataclass(frozen=True)
class Request:
    """Path and body of a halt."""

    path: str
    body: dict[str, str]


class NotSentError(Exception):
    """No halt was sent early, or the Gateway refused it: the command has to ask the Gateway itself."""


class EarlyHalt:
    """A request on its way."""

    def __init__(self, request: Request) -> None:
        """Start to send it."""
        self._request = request
        self._until = time.monotonic() + LIMIT_S
        self._connecting = False
        self._status = 0
        self._answer = b""
        self._thread = threading.Thread(target=self._send, name="early-halt", daemon=True)
        self._thread.start()

    def worlds(self) -> list[str] | None:
        """Wait for the answer; return the worlds that the Gateway has halted, None where it did not answer.

        Raises NotSentError.
        """
        self._thread.join(max(_LEAST_WAIT_S, self._until - time.monotonic()))
        status, answer = self._status, self._answer
        refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if not self._connecting or refused or b"E_HALT_INCOMPLETE" in answer:
            raise NotSentError
        try:
            found = json.loads(answer) if status == HTTPStatus.OK else {}
            worlds = found["worlds"] if self._request.path == "/halt" else [found["world_id"]]
            return [str(world) for world in worlds]
        except (ValueError, TypeError, KeyError):  # not the answer of a Gateway
            return None

    def _send(self) -> None:
        try:
            address, token = gateway(os.environ)
            import http.client  # with it a request takes a tenth of what the command's imports take

            if address.scheme == "https":
                import ssl

                import certifi

                trusted = ssl.create_default_context(cafile=certifi.where())  # what the command trusts
                connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                    address.netloc, timeout=LIMIT_S, context=trusted
                )
            else:
                connection = http.client.HTTPConnection(address.netloc, timeout=LIMIT_S)
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            body = json.dumps(self._request.body)
            self._connecting = True
            try:
                connection.request("POST", address.path.rstrip("/") + self._request.path, body, headers)
                response = connection.getresponse()
                self._answer = response.read()
                self._status = response.status
            finally:
                connection.close()
        except Exception:  # noqa: S110  the command meets the same, or goes on to the store; it says so
            pass


_sent: list[EarlyHalt] = []


def send(arguments: Sequence[str]) -> None:
    """Start to send the halt that the arguments of `qmtl` ask for, where that is certain."""
    request = request_of(arguments)
    if request:
        with suppress(RuntimeError):  # no thread can be started: the command needs none
            _sent.append(EarlyHalt(request))


def is_sent() -> bool:
    """Return whether a halt is on its way."""
    return bool(_sent)


def halted_worlds() -> list[str] | None:
    """Return the worlds that the early halt has halted, None where no Gateway answered it.

    Raises NotSentError.
    """
    if not _sent:
        raise NotSentError
    return _sent.pop().worlds()


def request_of(arguments: Sequence[str]) -> Request | None:
    """Return the request that arguments ask for; None for other commands, and unless it is certain."""
    if list(arguments[:2]) != ["world", "halt"]:
        return None
    worlds, all_worlds, body, rest = list[str](), False, dict[str, str](), list(arguments[2:])
    while rest:
        word = rest.pop(0)
        if word in _FIELDS and rest:
            field, value = _FIELDS[word], rest.pop(0)
            if field:
                body[field] = value[:_MAX_REASON] if field == "reason" else value
            elif value not in ("text", "json"):
                return None
        elif word == "--all":
            all_worlds = True
        else:
            worlds.append(word)
    if all_worlds and not worlds and "strategy" not in body:
        return Request("/halt", body)
    if len(worlds) == 1 and not all_worlds and _WORLD.fullmatch(worlds[0]):
        return Request(f"/worlds/{worlds[0]}/halt", body)
    return None


def gateway(variables: Mapping[str, str]) -> tuple[SplitResult, str]:
    """Return the Gateway's address and the token, as `qmtl_sdk.runtime.config.Settings` reads them.

    Raises an error where another reading is possible.
    """
    if any(map(_may_mislead, variables)) or Path("qmtl.yml").exists():
        raise ValueError("settings that only the command reads")
    home = variables.get("QMTL_HOME")
    if home is None:
        import platformdirs

        home = platformdirs.user_data_dir("qmtl")
    url = variables.get("QMTL_GATEWAY__URL") or _embedded(Path(home))
    token = variables.get("QMTL_GATEWAY__TOKEN") or (Path(home) / "tokens" / "operator").read_text().strip()
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname or "@" in address.netloc:
        raise ValueError("an address that only the command understands")
    if address.query or address.fragment:
        raise ValueError("an address that only the command understands")
    return address, token


def _may_mislead(variable: str) -> bool:
    """Return whether a variable may set the Gateway's address in a way that only the command reads."""
    name = variable.upper()
    if not name.startswith("QMTL_"):
        return False
    section, separator, key = name.removeprefix("QMTL_").partition("__")
    if variable != name or not separator:
        return variable != name or section in ("CONFIG", "GATEWAY")
    return section not in _OTHER_SECTIONS and not (section == "GATEWAY" and key in _GATEWAY_KEYS)


def _embedded(home: Path) -> str:
    """Return the address of the embedded stack's Gateway. Raises an error unless its process runs.

    Its port may be another program's since, and the token is for nobody else.
    """
    import psutil

    stack: dict[str, Any] = json.loads((home / "stack.json").read_text())
    process = psutil.Process(stack["gateway"]["pid"])
    is_it = abs(process.create_time() - stack["gateway"]["created"]) < 1
    if not is_it or process.status() == psutil.STATUS_ZOMBIE:
        raise ProcessLookupError
    return str(stack["gateway_url"])
