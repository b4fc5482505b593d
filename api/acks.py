"""Acknowledge freezes and unfreezes on behalf of this Gateway, once its subscribers have been woken."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterable
from functools import partial

import structlog

from activities.applies.acknowledgements import SqlApplyAcks
from activities.fence.acknowledgements import SqlGatewayLeases
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.events import CloudEvent

LEASE_S = 10.0
"""Seconds that an apply waits for a Gateway that sends no heartbeat: three heartbeats."""

_log = structlog.get_logger()


class GatewayAcks:
    """Keeps this Gateway's lease, and acknowledges the events that require it, in order.

    An apply waits for every Gateway that holds a lease; one that was killed is dropped when its lease ends.
    """

    def __init__(self, acks: SqlApplyAcks, leases: SqlGatewayLeases) -> None:
        self._acks = acks
        self._leases = leases
        self.gateway_id = f"gateway:{uuid.uuid4().hex[:12]}"
        self._due: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

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
                self._due.put_nowait((event.worldid, int(event.data["sequence"])))

    async def run(self) -> None:
        """Send heartbeats and acknowledgements until cancelled."""
        while True:
            heartbeat_at = time.monotonic() + LEASE_S / 3
            await self._try(lambda: self._leases.heartbeat(self.gateway_id, LEASE_S))
            while (left := heartbeat_at - time.monotonic()) > 0:
                try:
                    world_id, sequence = await asyncio.wait_for(self._due.get(), left)
                except TimeoutError:
                    break
                await self._try(partial(self._acks.ack, world_id, sequence, self.gateway_id, "gateway"))

    @staticmethod
    async def _try(call: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(call)
        except Exception as error:  # the loop must outlive whatever one row holds
            _log.warning("an apply may wait for this Gateway", why=repr(error))
