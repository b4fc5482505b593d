"""What venues said of the orders of a flatten that they ended unfilled, by symbol.

Another order is made after a pause; after `MAX_FAILURES` without a fill between them, none, and the flatten
leaves that symbol to people.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from activities.storage.transactions import utc_text
from qmtl_sdk.contracts.durations import retry_pause_s
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.orders import MAX_REASON

MAX_FAILURES = 10
"""Orders of a symbol that a venue ends one after the other without a fill, before no other is made."""

# Seconds before another order is made; they double each time.
_RETRY_S = 5.0
_RETRY_LIMIT_S = 60.0


class SymbolFault(Model):
    """How many orders of a symbol failed in a row, and what was said of the last one.

    `next_at`: when another is made (ISO 8601, UTC); empty where none waits for a time.
    """

    failures: int = 0
    said: str = ""
    next_at: str = ""

    @property
    def given_up(self) -> bool:
        """Whether no other order is made."""
        return self.failures >= MAX_FAILURES

    @property
    def text(self) -> str:
        """Why no other order is made."""
        return f"{self.failures} orders were not filled, and the last one was {self.said}"

    def failed(self, said: str) -> "SymbolFault":
        """Return the fault after one order more that failed."""
        failures = self.failures + 1
        pause = timedelta(seconds=retry_pause_s(failures, _RETRY_S, _RETRY_LIMIT_S))
        next_at = "" if failures >= MAX_FAILURES else utc_text(datetime.now(UTC) + pause)
        return SymbolFault(failures=failures, said=said[:MAX_REASON], next_at=next_at)


class OrderEnd(NamedTuple):
    """What a venue reported of an order of a flatten. `said`: how it ended; empty where it did not fail."""

    symbol: str
    filled: bool
    said: str


Faults = Mapping[str, SymbolFault]
"""The faults of a flatten, by symbol."""

_FAULTS = TypeAdapter(dict[str, SymbolFault])


def faults_of(row: Any) -> dict[str, SymbolFault]:
    """Read the faults of a flatten. (Any: the columns of `FlatteningRow`.)"""
    return _FAULTS.validate_json(row.faults) if row.faults else {}


def fault_values(faults: Faults) -> dict[str, str]:
    """Return the columns that hold faults; `next_at` is the earliest of theirs."""
    times = [fault.next_at for fault in faults.values() if fault.next_at]
    body = _FAULTS.dump_json(dict(faults), exclude_defaults=True).decode() if faults else ""
    return {"faults": body, "next_at": min(times, default="")}


def with_end(faults: Faults, end: OrderEnd) -> dict[str, SymbolFault]:
    """Return faults after an order. A fill is progress: failures count anew."""
    found = dict(faults)
    if end.filled:
        found.pop(end.symbol, None)
    if end.said:
        found[end.symbol] = found.get(end.symbol, SymbolFault()).failed(end.said)
    return found


def without_pauses(faults: Faults, now: str) -> dict[str, SymbolFault]:
    """Return faults whose time has come as ones that wait for none."""
    return {
        symbol: fault if fault.next_at > now else fault.model_copy(update={"next_at": ""})
        for symbol, fault in faults.items()
    }
