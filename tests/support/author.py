"""An author who submits to the world `equities` over a client and stores, without a Gateway."""

import asyncio

import numpy as np

from benchmarks.submit import submission
from qmtl_sdk.contracts.canonical import content_hash
from qmtl_sdk.contracts.policy_text import policy_from
from qmtl_sdk.contracts.submission import EvidenceRef, SubmissionAck, SubmissionOutcome
from qmtl_sdk.contracts.worlds import WorldSpec
from qmtl_sdk.data.bars import NS
from qmtl_sdk.reports.artifact import encode
from qmtl_sdk.reports.returns import Returns
from temporal.submissions import SubmissionService
from tests.support.served import Served
from tests.support.workers import LIMIT_S
from tests.support.worlds import POLICY, world

DAY = 86_400


class Author:
    """Submits to the world `equities`, and computes."""

    def __init__(self, stage: Served, heartbeat_s: float = 300.0) -> None:
        self._stage = stage
        stores = stage.stores
        stores.fence.create(WorldSpec.model_validate(world()), policy_from(POLICY), "me")
        self.service = SubmissionService(
            stage.client, stage.store_id, stores.log, stores.runs, stores.decisions, heartbeat_s
        )
        values = np.random.default_rng(1).normal(0.0005, 0.01, 250)
        values[0] = 0
        data = encode(Returns(np.arange(250, dtype="int64") * DAY * NS, values, DAY, {}, {}, ()))
        stores.artifacts.put(content_hash(data), data)
        self.proof = EvidenceRef(returns_hash=content_hash(data))

    async def submits(self, number: int, runner: str = "") -> SubmissionAck:
        ready = submission(number)
        return await self.service.submit(ready.model_copy(update={"runner": runner or ready.runner}), "me")

    async def completes(self, ack: SubmissionAck) -> SubmissionOutcome:
        """Complete the lease, and wait for the outcome."""
        assert ack.lease is not None
        await self.service.complete(ack.lease.lease_id, self.proof)
        return await self.outcome(ack)

    async def outcome(self, ack: SubmissionAck) -> SubmissionOutcome:
        """Wait for the outcome of a run."""
        run = await asyncio.to_thread(self._stage.stores.runs.run, ack.run_id)
        assert run is not None
        found = await self.service.outcome(run, LIMIT_S)
        assert found is not None
        return found
