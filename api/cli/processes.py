"""The processes of an installation, for `qmtl status`: heartbeats, and the record of the embedded stack."""

import socket
from collections.abc import Sequence

from activities.settings import Settings
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.processes import ProcessStatus
from qmtl_sdk.runtime.embedded import ProcessRecord, StackRecord

# The states, the best first.
_STATES = ("running", "starting", "standing by", "not answering", "dead")


def labelled(stack: StackRecord, beats: Sequence[ProcessStatus] | None) -> dict[str, ProcessStatus]:
    """Return all processes: the best of each name under its name, the others as `NAME:PID`.

    `beats` None: heartbeats cannot be read, and only the stack's record says what runs.
    """
    mine = socket.gethostname()
    found = {(item.host, item.pid): item for item in beats or ()}
    for name, part in stack.processes().items():
        item = found.get((mine, part.pid))
        if item is None or not part.alive:
            found[mine, part.pid] = _recorded(name, part, item, beats is not None)
    processes: dict[str, ProcessStatus] = {}
    for item in sorted(found.values(), key=lambda item: (item.name, _STATES.index(item.state))):
        processes[item.name if item.name not in processes else f"{item.name}:{item.pid}"] = item
    return processes


def _recorded(name: str, part: ProcessRecord, beat: ProcessStatus | None, beats_known: bool) -> ProcessStatus:
    """Describe a process of the embedded stack by its record."""
    if not part.alive:
        seen_s = beat.seen_s if beat else None
        return ProcessStatus(name=name, pid=part.pid, host=socket.gethostname(), state="dead", seen_s=seen_s)
    # Temporal writes no heartbeats; another one that has not written any yet is at its start.
    state = "starting" if beats_known and name != "temporal" else "running"
    return ProcessStatus.model_validate(
        {"name": name, "pid": part.pid, "host": socket.gethostname(), "state": state}
    )


def heartbeats_in_store(config: Settings) -> list[ProcessStatus] | None:
    """Read the heartbeats in the store itself, where no Gateway answers. None where that is not possible."""
    from activities.storage.heartbeats import processes  # loads the database, as below
    from activities.storage.opening import open_database
    from api.cli.halt_in_store import require_store

    try:
        require_store(config)
        database = open_database(config.database_dsn)
        try:
            return processes(database)
        finally:
            database.close()
    except QmtlError:
        return None


def processes_text(processes: dict[str, ProcessStatus]) -> list[str]:
    """Describe each process in a line."""
    return [_line(label, item) for label, item in processes.items()]


def _line(label: str, item: ProcessStatus) -> str:
    parts = [f"{label:<12} {item.state}", f"pid {item.pid}"]
    if item.host != socket.gethostname():
        parts.append(f"on {item.host}")
    if item.seen_s is not None:
        parts.append(f"heartbeat {item.seen_s:.0f} s ago")
    if item.state == "not answering" and item.worked_s is not None:
        parts.append(f"it last worked {item.worked_s:.0f} s ago")
    if item.fault:
        parts.append(f"fault: {item.fault}")
    return ", ".join(parts)
