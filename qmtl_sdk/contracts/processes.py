"""Processes of an installation, as their heartbeats show them."""

from typing import Literal

from qmtl_sdk.contracts.model import Model

ProcessState = Literal["starting", "running", "standing by", "not answering", "dead"]
"""`standing by`: another process does its work, and it takes over when that one ends."""


class ProcessStatus(Model):
    """A process by its newest heartbeat.

    `seen_s` and `worked_s` are the seconds since its heartbeat, and since its loop last worked; None where it
    has none. `fault` is the error of its last turn, empty where that succeeded.
    """

    name: str
    pid: int
    host: str
    state: ProcessState
    seen_s: float | None = None
    worked_s: float | None = None
    fault: str = ""
