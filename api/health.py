"""The health of an installation, as a Gateway sees it: what is missing, and what that means for orders.

Anyone may ask, so the answer costs the same however often it is asked for and whatever the database holds:
one measurement at a time, at most one a second, of counts with a limit. Temporal gets `LIMIT_S` seconds.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Literal

from activities.storage.heartbeats import count_working, processes
from activities.stores import Stores
from api.loops import BackgroundLoops
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.processes import ProcessStatus
from temporal.probe import TemporalProbe

_NO_WORKFLOWS = "submissions, applies and renewals wait; orders pass until decisions are older than their ttl"

MEANING = {
    "database": "nothing works: no orders, submissions or halts",
    "temporal": _NO_WORKFLOWS,
    "worker": _NO_WORKFLOWS,
    "relay": "orders pass, and freezes and halts take effect; events are late, so runners learn of them late",
    "router": "live orders are refused; accepted orders wait, and expire after orders.send_within_s",
}
"""What it means for orders and everything else that a part is missing."""

# Seconds for which a measurement is the answer.
_FRESH_S = 1.0

# Seconds between two looks at running workflows.
_LOOK_EVERY_S = 5.0

# Rows that are counted at most.
_MOST = 1000

# Seconds that the database has to answer.
_DATABASE_S = 2.0


class Health(Model):
    """`ok`: everything works. `degraded`: something does not, and the other fields show what.

    `missing`: parts that do not work now, and what that means. `faults`: loops, processes and workflows that
    fail. `workers`: workers that work. `dead_letters`: events that could not be published; everything else
    goes on without them. `log_waiting`: submissions that wait for Temporal. Counts end at 1,000.
    """

    status: Literal["ok", "degraded"]
    database: bool
    temporal: bool
    workers: int
    missing: dict[str, str]
    faults: dict[str, str]
    dead_letters: int
    log_waiting: int


class Measurement(Model):
    """Health with what only a person with a token may see: the processes, and the texts of faults."""

    health: Health
    processes: tuple[ProcessStatus, ...]
    faults: dict[str, str]


class _Rows(Model):
    """What the database knows."""

    processes: tuple[ProcessStatus, ...] = ()
    dead_letters: int = 0
    log_waiting: int = 0


class HealthCheck:
    """Measures health, once for all who ask at the same time."""

    def __init__(self, stores: Stores, probe: TemporalProbe, loops: BackgroundLoops) -> None:
        self._stores = stores
        self._probe = probe
        self._loops = loops
        self._lock = asyncio.Lock()
        self._reading: asyncio.Future[_Rows] | None = None
        self._looked = 0.0
        self._measured = 0.0
        self._last: Measurement | None = None

    async def measure(self) -> Measurement:
        """Return a measurement that is at most a second old."""
        async with self._lock:
            if self._last is None or time.monotonic() - self._measured > _FRESH_S:
                self._last = await self._measure()
                self._measured = time.monotonic()
            return self._last

    async def _measure(self) -> Measurement:
        rows, temporal = await asyncio.gather(self._rows(), self._probe.answers())
        if temporal and time.monotonic() - self._looked > _LOOK_EVERY_S:
            await self._probe.look()
            self._looked = time.monotonic()
        missing = _missing(rows, temporal)
        faults = {f"loop {name}": text for name, text in self._loops.faults().items()}
        for item in rows.processes if rows else ():
            if item.fault:
                faults[f"{item.name} {item.pid}"] = item.fault
        faults |= {f"workflow {name}": text for name, text in self._probe.failing.items() if temporal}
        health = Health(
            status="degraded" if missing or faults else "ok",
            database=rows is not None,
            temporal=temporal,
            workers=count_working(rows.processes, "worker") if rows else 0,
            missing=missing,
            # Texts of errors may hold anything; who has no token sees the kind of an error.
            faults={
                name: text if name.startswith("workflow ") else _kind(text) for name, text in faults.items()
            },
            dead_letters=rows.dead_letters if rows else 0,
            log_waiting=rows.log_waiting if rows else 0,
        )
        return Measurement(health=health, processes=rows.processes if rows else (), faults=faults)

    async def _rows(self) -> _Rows | None:
        """Read the database; None where it does not answer in time.

        A read that hangs keeps its thread, so there is one at a time.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(asyncio.to_thread(self._read))
        try:
            rows = await asyncio.wait_for(asyncio.shield(self._reading), _DATABASE_S)
        except TimeoutError:
            return None
        except Exception:  # whatever the database raises, it does not answer
            self._reading = None
            return None
        self._reading = None
        return rows

    def _read(self) -> _Rows:
        return _Rows(
            processes=tuple(processes(self._stores.database)),
            dead_letters=self._stores.dead_letters.count(_MOST),
            log_waiting=self._stores.log.count_waiting(_MOST),
        )


def _missing(rows: _Rows | None, temporal: bool) -> dict[str, str]:
    """Return what each missing part means. Processes are not known without the database."""
    found = [] if temporal else ["temporal"]
    if rows is None:
        found.insert(0, "database")
    else:
        found += missing_processes(rows.processes)
    return {name: MEANING[name] for name in found}


def missing_processes(found: Sequence[ProcessStatus]) -> list[str]:
    """Return the names of the processes of which none works."""
    return [name for name in ("worker", "relay", "router") if not count_working(found, name)]


def _kind(text: str) -> str:
    """Return a fault without the message of its error."""
    failures, separator, rest = text.partition(": ")
    return f"{failures}{separator}{rest.partition(':')[0]}" if failures.startswith("failed ") else failures
