"""Contain the exceptions of an author's code on the threads of a running strategy.

An exception becomes a fault of the order gate, so the gate closes and heartbeats report it. It is also logged
with its traceback, so the author sees the line.
"""

import logging
import traceback
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

REPORTED = ("run", "on_output", "on_verdict", "orders", "data", "compute")
"""The kinds of faults that a heartbeat reports; of several, the first of this order."""

_log = logging.getLogger(__name__)


def contained(
    callback: Callable[P, None] | None, name: str, faults: dict[str, str], text: str = ""
) -> Callable[P, None]:
    """Wrap a function that runs an author's code: an exception sets the fault `name` and is not raised.

    `text` says what happened. The fault stays because the author's own record of orders or rows has a hole
    from then on.
    """

    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        if callback is None:
            return
        try:
            callback(*args, **kwargs)
        except BaseException as error:  # SystemExit, too: it would end the thread without a trace
            set_fault(faults, name, text or f"{name} has raised an exception", error)

    return call


def set_fault(faults: dict[str, str], name: str, text: str, error: BaseException) -> None:
    """Set a fault of the order gate from an exception; log it unless the fault was set before."""
    if name not in faults:
        _log.error(text, exc_info=error)
    # Unlike str(error), it does not raise where the author's own __str__ does.
    faults[name] = f"{text}: {traceback.format_exception_only(error)[-1].strip()}"


def reported_fault(faults: dict[str, str]) -> str:
    """Return the fault that a heartbeat reports; empty if there is none."""
    return next(filter(None, map(faults.get, REPORTED)), "")
