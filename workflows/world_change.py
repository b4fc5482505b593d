"""The activities of an apply that change its world: freeze, drain, switch, restore, unfreeze, conclude.

The store does each of them once, however often an activity is repeated.
"""

from temporalio import workflow

from activities.messages.apply import (
    AckResult,
    ApplyInput,
    AwaitAcks,
    ConcludeApply,
    DrainCommand,
    FenceChange,
)
from activities.messages.stubs import ApplyActivityStubs
from qmtl_sdk.contracts.applies import ApplyOutcome
from qmtl_sdk.contracts.plans import Drain, Freeze, Unfreeze
from workflows.apply_view import missing_acknowledgements
from workflows.markdown import one_line, with_reason
from workflows.options import FENCE, STORE, WAIT


class WorldChange:
    """Changes one world for one apply. `epoch` is 0 until the world is frozen; `notes` are for people.

    `frozen`: whether this apply has frozen the world, in this run or in one that this run replaces.
    """

    def __init__(self, apply: ApplyInput) -> None:
        self.epoch = 0
        self.notes: list[str] = []
        self._apply = apply
        self.frozen = False
        self._freeze: FenceChange | None = None
        self._ack_timeout_s = 0.0

    async def freeze(self, step: Freeze) -> None:
        """Refuse all orders from now on. Raises ActivityError where the world can't be frozen."""
        self._freeze = await workflow.execute_activity_method(
            ApplyActivityStubs.freeze_world,
            self._apply,
            summary=one_line(f"freeze world {self._apply.world_id}: refuse orders, raise the epoch"),
            **FENCE,
        )
        self.frozen = True
        self.epoch = self._freeze.epoch
        self._ack_timeout_s = step.ack_timeout_s

    async def drain(self, step: Drain) -> None:
        """Wait until no order is open and the freeze is acknowledged.

        Raises ActivityError after the time limit.
        """
        assert self._freeze is not None  # a plan freezes before it drains
        command = DrainCommand(
            **self._apply.model_dump(),
            frozen=self._freeze,
            timeout_s=step.timeout_s,
            ack_timeout_s=self._ack_timeout_s,
        )
        abort = f"`qmtl world abort {command.world_id} {command.run_id}`"
        result = await workflow.execute_activity_method(
            ApplyActivityStubs.drain_world,
            command,
            summary=one_line(f"drain: wait for open orders and acknowledgements; to end it: {abort}"),
            **WAIT,
        )
        self._note_missing("freeze", result)

    async def switch(self) -> None:
        """Change activations, edges, queues and fingerprint. Raises ActivityError where that is refused."""
        await workflow.execute_activity_method(
            ApplyActivityStubs.switch_world,
            self._apply,
            summary="switch activations, edges, queues, fingerprint",
            **FENCE,
        )

    async def restore(self) -> None:
        """Restore the state before the switch. The world stays frozen."""
        resume = f"`qmtl world resume {self._apply.world_id}`"
        await workflow.execute_activity_method(
            ApplyActivityStubs.restore_world,
            self._apply,
            summary=one_line(f"restore the state before the switch; the world stays frozen: {resume}"),
            **FENCE,
        )

    async def unfreeze(self, summary: str) -> FenceChange:
        """Accept orders again, under a new epoch."""
        change = await workflow.execute_activity_method(
            ApplyActivityStubs.unfreeze_world, self._apply, summary=one_line(summary), **FENCE
        )
        self.epoch = change.epoch
        return change

    async def unfreeze_and_wait(self, step: Unfreeze) -> None:
        """Accept orders again, and wait until that is acknowledged."""
        change = await self.unfreeze("unfreeze: accept orders under a new epoch")
        command = AwaitAcks(
            **self._apply.model_dump(), change=change, phase="unfreeze", timeout_s=step.ack_timeout_s
        )
        result = await workflow.execute_activity_method(
            ApplyActivityStubs.await_acks,
            command,
            summary="wait for acknowledgements of the unfreeze",
            **WAIT,
        )
        self._note_missing("unfreeze", result)

    async def conclude(self, outcome: ApplyOutcome, reason: str) -> None:
        """Record how the apply ended."""
        await workflow.execute_local_activity_method(
            ApplyActivityStubs.conclude_apply,
            ConcludeApply(**self._apply.model_dump(), outcome=outcome, reason=reason),
            summary=one_line(with_reason(f"record the outcome: {outcome}", reason)),
            **STORE,
        )

    def _note_missing(self, change: str, result: AckResult) -> None:
        if result.missing:
            self.notes.append(missing_acknowledgements(change, result.missing))
