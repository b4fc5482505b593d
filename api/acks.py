"""Acknowledge freezes and unfreezes on behalf of this Gateway, once its subscribers have been woken."""

import asyncio
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

import structlog

from activities.applies.acknowledgements import SqlApplyAcks
from activities.fence.acknowledgements import SqlGatewayLeases
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent

LEASE_S = 10.0
"""Seconds that an apply waits for a Gateway that sends no heartbeat: three heartbeats."""

# How often an acknowledgement is tried.
_TRIES = 5

_log = structlog.get_logger()


@dataclass(frozen=True)
class _Due:
    """An event that requires an acknowledgement."""

    world_id: str
    sequence: int
    tries: int = 1


class GatewayAcks:
    """Keeps this Gateway's lease, and acknowledges the events that require it, in order.

    An apply waits for every Gateway that holds a lease; one that was killed is dropped when its lease ends.
    """

    def __init__(self, acks: SqlApplyAcks, leases: SqlGatewayLeases) -> None:
        self._acks = acks
        self._leases = leases
        self.gateway_id = f"gateway:{uuid.uuid4().hex[:12]}"
        self._due: asyncio.Queue[_Due] = asyncio.Queue()

    async def begin(self) -> None:
        """Take the lease."""
        await asyncio.to_thread(self._leases.heartbeat, self.gateway_id, LEASE_S)

    async def end(self) -> None:
        """Give the lease back; where that fails, it runs out."""
        try:
            await asyncio.to_thread(self._leases.end, self.gateway_id)
        except QmtlError as error:
            _log.warning("this Gateway could not end its lease", why=str(error))

    def add(self, events: Iterable[CloudEvent]) -> None:
        """Queue the events that require an acknowledgement."""
        for event in events:
            if event.type == "activation_updated" and event.data and event.data.get("requires_ack"):
                self._due.put_nowait(_Due(event.worldid, int(event.data["sequence"])))

    async def renew(self) -> float:
        """Extend the lease: a turn of the loop `Gateway lease`."""
        await asyncio.to_thread(self._leases.heartbeat, self.gateway_id, LEASE_S)
        return LEASE_S / 3

    async def acknowledge(self) -> float:
        """Wait for an event and acknowledge it: a turn of the loop `acknowledgements`.

        One that cannot be written is tried again after the others, `_TRIES` times at most: the apply stops
        waiting for it at its time limit.
        """
        due = await self._due.get()
        try:
            await asyncio.to_thread(self._acks.ack, due.world_id, due.sequence, self.gateway_id, "gateway")
        except Exception:
            if due.tries < _TRIES:
                self._due.put_nowait(replace(due, tries=due.tries + 1))
            raise
        return 0.0
