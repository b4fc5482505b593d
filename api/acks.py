"""This Gateway says that it has heard: of every freeze and unfreeze that asks for it, in order, once its subscribers have been told."""

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
_log = structlog.get_logger()


class GatewayAcks:
    """As long as it beats, an apply waits for this Gateway; one that was killed is not waited for beyond its lease."""

    def __init__(self, acks: SqlApplyAcks, leases: SqlGatewayLeases) -> None:
        self._acks = acks
        self._leases = leases
        self.gateway_id = f"gateway:{uuid.uuid4().hex[:12]}"
        self._heard: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    async def begin(self) -> None:
        await asyncio.to_thread(self._leases.heartbeat, self.gateway_id, LEASE_S)

    async def end(self) -> None:
        try:
            await asyncio.to_thread(self._leases.end, self.gateway_id)
        except QmtlError as error:
            _log.warning("this Gateway could not say that it goes", why=str(error))  # its lease runs out

    def hear(self, events: Iterable[CloudEvent]) -> None:
        for event in events:
            if event.type == "activation_updated" and event.data and event.data.get("requires_ack"):
                self._heard.put_nowait((event.worldid, int(event.data["sequence"])))

    async def run(self) -> None:
        """Beat and acknowledge until cancelled."""
        while True:
            next_beat = time.monotonic() + LEASE_S / 3
            await self._try(lambda: self._leases.heartbeat(self.gateway_id, LEASE_S))
            while (left := next_beat - time.monotonic()) > 0:
                try:
                    world_id, sequence = await asyncio.wait_for(self._heard.get(), left)
                except TimeoutError:
                    break
                await self._try(partial(self._acks.ack, world_id, sequence, self.gateway_id, "gateway"))

    @staticmethod
    async def _try(call: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(call)
        except QmtlError as error:
            _log.warning("an apply may wait for this Gateway", why=str(error))
