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
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

LIMIT_S = 1.0
"""Seconds that a Gateway has to answer a halt before the store is halted without it."""

# Seconds in which it is known that nobody listens: the store is then halted before the command has loaded.
_REFUSED_WITHIN_S = 0.2

# Seconds to wait for an answer at least, once the command has loaded.
_LEAST_WAIT_S = 0.1

# The characters of an address, as the configuration has them.
_ADDRESS_CHARACTERS = re.compile(r"[!-~]+")

# The form of a world's id, as the contracts have it.
_WORLD = re.compile(r"[a-z0-9][a-z0-9_\-]{0,63}")

# Characters of a reason, as the contracts have it.
_MAX_REASON = 300

# Options with a value, and the field of the request's body that it fills; none: it is not sent.
_FIELDS = {"-s": "strategy", "--strategy": "strategy", "--reason": "reason", "-o": None, "--output": None}

# Sections of the configuration that do not concern the Gateway's address, and the keys of the one that does.
_OTHER_SECTIONS = {
    "AUTH",
    "CACHE",
    "DATA",
    "EVENTS",
    "ORDERS",
    "REBALANCING",
    "RETENTION",
    "TEMPORAL",
    "TEST",
}
_GATEWAY_KEYS = {
    "COSTLY_PER_S",
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
    """What to halt: a world, one strategy of it, or all worlds where `world` is None."""

    world: str | None
    strategy: str | None = None
    reason: str = ""


class Halted(NamedTuple):
    """The worlds that are halted, by a Gateway or in the store."""

    worlds: list[str]
    in_store: bool = False
    ended: tuple[int, ...] = ()
    """Processes that were ended, because they were stopped and kept all writers out of the store."""


class NotSentError(Exception):
    """No halt was sent early, or the Gateway refused it: the command has to ask the Gateway itself."""


class EarlyHalt:
    """A halt that is sent, or stored, before the command has loaded."""

    def __init__(self, request: Request) -> None:
        """Start to send it."""
        self._request = request
        self._until = time.monotonic() + LIMIT_S
        self._connecting = False
        self._nobody_listens = False
        self._status = 0
        self._answer = b""
        self._stored: Halted | None = None
        self._thread = threading.Thread(target=self._send, name="early-halt", daemon=True)
        self._thread.start()

    def store_if_nobody_listens(self) -> None:
        """Halt in the store where it is known at once that no Gateway runs.

        Whatever fails here, the command tries again with more time, and reports.
        """
        self._thread.join(_REFUSED_WITHIN_S)
        if self._nobody_listens:
            with suppress(Exception):
                from api.cli.halt_in_store import halt_in_store  # loads the database, and not the command

                request = self._request
                self._stored = halt_in_store(request.world, request.strategy, None, request.reason, LIMIT_S)

    def result(self) -> Halted | None:
        """Wait for the answer; return what is halted, None where no Gateway answered.

        Raises NotSentError.
        """
        if self._stored is not None:
            return self._stored
        self._thread.join(max(_LEAST_WAIT_S, self._until - time.monotonic()))
        status, answer = self._status, self._answer
        refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
        if not self._connecting or refused or b"E_HALT_INCOMPLETE" in answer:
            raise NotSentError
        try:
            found = json.loads(answer) if status == HTTPStatus.OK else {}
            worlds = found["worlds"] if self._request.world is None else [found["world_id"]]
            good = isinstance(worlds, list) and all(isinstance(world, str) for world in worlds)
            good = good and self._request.world in (None, *worlds)
            return Halted(worlds) if good else None
        except Exception:  # not the answer of a Gateway
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
            world, strategy, reason = self._request.world, self._request.strategy, self._request.reason
            path = "/halt" if world is None else f"/worlds/{world}/halt"
            body = json.dumps({"reason": reason, **({"strategy": strategy} if strategy is not None else {})})
            self._connecting = True
            try:
                connection.request("POST", address.path.rstrip("/") + path, body, headers)
                response = connection.getresponse()
                self._answer = response.read()
                self._status = response.status
            finally:
                connection.close()
        except (ConnectionRefusedError, ProcessLookupError):
            self._nobody_listens = True
        except Exception:  # noqa: S110  the command meets the same, or goes on to the store; it says so
            pass


_sent: list[EarlyHalt] = []


def send(arguments: Sequence[str]) -> None:
    """Send the halt that the arguments of `qmtl` ask for, where that is certain.

    Where nobody listens, this also tries to halt in the store, and waits for a fence until its limit; if that
    fails, the command tries again. Otherwise it returns after 0.2 s at most.
    """
    request = request_of(arguments)
    if request:
        with suppress(RuntimeError):  # no thread can be started: the command needs none
            halt = EarlyHalt(request)
            _sent.append(halt)
            halt.store_if_nobody_listens()


def was_sent() -> bool:
    """Return whether a halt was sent early."""
    return bool(_sent)


def result() -> Halted | None:
    """Return what the early halt has halted, None where no Gateway answered it. Raises NotSentError."""
    if not _sent:
        raise NotSentError
    return _sent[-1].result()


def request_of(arguments: Sequence[str]) -> Request | None:
    """Return the request that arguments ask for; None for other commands, and unless it is certain."""
    if list(arguments[:2]) != ["world", "halt"]:
        return None
    worlds, all_worlds, given, rest = list[str](), False, dict[str, str](), list(arguments[2:])
    while rest:
        word = rest.pop(0)
        if word in _FIELDS and rest:
            field, value = _FIELDS[word], rest.pop(0)
            if field:
                given[field] = value[:_MAX_REASON] if field == "reason" else value
            elif value not in ("text", "json"):
                return None
        elif word == "--all":
            all_worlds = True
        elif word == "--flatten":
            continue  # the command does it once it has loaded, after the halt
        else:
            worlds.append(word)
    if all_worlds and not worlds and "strategy" not in given:
        return Request(None, **given)
    if len(worlds) == 1 and not all_worlds and _WORLD.fullmatch(worlds[0]):
        return Request(worlds[0], **given)
    return None


def gateway(variables: Mapping[str, str]) -> tuple[SplitResult, str]:
    """Return the Gateway's address and the token, as `qmtl_sdk.runtime.config.Settings` reads them.

    Raises an error where another reading is possible.
    """
    if any(starmap(_may_mislead, variables.items())) or Path("qmtl.yml").exists():
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
    if address.query or address.fragment or not _ADDRESS_CHARACTERS.fullmatch(url):
        raise ValueError("an address that only the command understands")
    return address, token


def _may_mislead(variable: str, value: str) -> bool:
    """Return whether a variable may set the Gateway's address in a way that only the command reads.

    Those that Kubernetes sets for a service called qmtl-gateway set nothing.
    """
    name = variable.upper()
    if not name.startswith("QMTL_"):
        return False
    section, separator, key = name.removeprefix("QMTL_").partition("__")
    if variable != name or not separator:
        if variable != name or section in ("CONFIG", "GATEWAY"):
            return True
        set_by_kubernetes = section == "GATEWAY_PORT" and "://" in value
        return section.removeprefix("GATEWAY_") in _GATEWAY_KEYS and not set_by_kubernetes
    return section not in _OTHER_SECTIONS and not (section == "GATEWAY" and key in _GATEWAY_KEYS)


def _embedded(home: Path) -> str:
    """Return the address of the embedded stack's Gateway. Raises ProcessLookupError unless its process runs.

    Its port may be another program's since, and the token is for nobody else.
    """
    import psutil

    stack: dict[str, Any] = json.loads((home / "stack.json").read_text())
    try:
        process = psutil.Process(stack["gateway"]["pid"])
        is_it = abs(process.create_time() - stack["gateway"]["created"]) < 1
        if is_it and process.status() != psutil.STATUS_ZOMBIE:
            return str(stack["gateway_url"])
    except psutil.NoSuchProcess:
        pass
    raise ProcessLookupError
