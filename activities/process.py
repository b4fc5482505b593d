"""The life of a process that works for one database: settings, signals, the ready line, the exit code."""

import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from activities import end_loading
from activities.settings import Settings, settings
from activities.storage.database import Database
from activities.storage.opening import open_database
from qmtl_sdk.contracts.errors import QmtlError


class Service(Protocol):
    """What a process does."""

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set."""


def run_process(
    name: str, open_service: Callable[[Settings, Database], AbstractContextManager[Service]]
) -> int:
    """Run a service with the settings of this folder until SIGTERM or SIGINT. Returns the exit code."""
    stop = stop_at_signals()
    try:
        config = settings()
        config.require_profile()
        database = open_database(config.database_dsn)
        try:
            with open_service(config, database) as service:
                end_loading()
                print(f"{name}: ready", flush=True)
                service.run(stop)
        finally:
            database.close()
    except QmtlError as error:
        print(f"{name}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def stop_at_signals() -> threading.Event:
    """Return an event that is set at SIGTERM and SIGINT, for the rest of the process's life.

    A thread sets it. A signal's handler runs in the main thread, which may hold the event's lock in `wait`
    at that moment, and would wait for itself for ever.
    """
    stop = threading.Event()
    arrived, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)

    def wait() -> None:
        arrived.recv(1)
        stop.set()

    threading.Thread(target=wait, name="signals", daemon=True).start()
    return stop
