"""The clock that the nodes of a strategy declare."""

from collections.abc import Iterable
from typing import Protocol

from qmtl_sdk.contracts.domains import DeclaredClock
from qmtl_sdk.contracts.errors import QmtlError


class HasClock(Protocol):
    """A node, as it is submitted."""

    @property
    def label(self) -> str: ...

    @property
    def clock(self) -> DeclaredClock | None: ...


def declared_clock(nodes: Iterable[HasClock]) -> DeclaredClock | None:
    """Return the clock that nodes declare; None where none does.

    Raises QmtlError (E_DAG_MIXED_CLOCKS) where two declare different ones.
    """
    clocks = {node.clock: node.label for node in nodes if node.clock}
    if len(clocks) > 1:
        named = " and ".join(f"{label} ({clock})" for clock, label in sorted(clocks.items()))
        raise QmtlError("E_DAG_MIXED_CLOCKS", f"the DAG mixes clocks: {named}", "declare one clock, or none")
    return next(iter(clocks), None)
