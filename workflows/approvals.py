"""Approvals of one apply: signals are stored first, then read back as the store counts them."""

from datetime import datetime, timedelta

from temporalio import workflow

from activities.messages.apply import (
    ApplyInput,
    ApprovalSignal,
    ApprovalVerdict,
    AwaitApproval,
    DirectApproval,
)
from activities.messages.stubs import ApplyActivityStubs
from qmtl_sdk.contracts.applies import Approval, approvers, rejection
from qmtl_sdk.contracts.plans import AwaitApprovals
from workflows.apply_view import missing_approvals
from workflows.failures import EndedError
from workflows.ids import direct_approval_id
from workflows.markdown import one_line, with_reason
from workflows.options import STORE


class Approvals:
    """Receives approval signals, and knows what the store has counted."""

    def __init__(self, apply: ApplyInput) -> None:
        self.stored: tuple[Approval, ...] = ()
        self._apply = apply
        self._received: list[tuple[ApprovalVerdict, ApprovalSignal]] = []

    @property
    def unread(self) -> bool:
        """Whether a signal came that was not read yet."""
        return bool(self._received)

    @property
    def approved_by(self) -> set[str]:
        """The people whose approvals count."""
        return approvers(self.stored)

    @property
    def rejection(self) -> Approval | None:
        """The first rejection that counts."""
        return rejection(self.stored)

    async def begin(self, step: AwaitApprovals) -> datetime:
        """Record that the apply waits, and read what was given before. Returns the end of the wait."""
        until = workflow.now() + timedelta(seconds=step.expires_s)
        wait = await workflow.execute_local_activity_method(
            ApplyActivityStubs.await_approval,
            AwaitApproval(**self._apply.model_dump(), until=until),
            summary=one_line(missing_approvals(self._apply, step, set())),
            **STORE,
        )
        await self.read()
        return wait.until

    def are_enough(self, step: AwaitApprovals) -> bool:
        """Check whether enough people approved. Raises EndedError if someone rejected it."""
        if (rejection := self.rejection) is not None:
            raise EndedError("rolled_back", with_reason(f"rejected by {rejection.actor}", rejection.reason))
        return len(self.approved_by) >= step.required

    def receive(self, verdict: ApprovalVerdict, signal: ApprovalSignal) -> None:
        """Take a signal, unless it is meant for another apply."""
        if signal.run_id and signal.run_id != self._apply.run_id:
            return
        if not signal.is_stored:
            # A direct signal may claim any id, so it gets one from its place in the history.
            info = workflow.info()
            history_length = info.get_current_history_length()
            own_id = direct_approval_id(info.run_id, history_length, len(self._received))
            signal = signal.model_copy(update={"approval_id": own_id})
        self._received.append((verdict, signal))

    async def read(self) -> None:
        """Store the direct signals, then read all approvals from the store."""
        received = self._received
        self._received = []
        for verdict, signal in received:
            if not signal.is_stored:
                await self._store(verdict, signal)
        found = await workflow.execute_local_activity_method(
            ApplyActivityStubs.read_approvals, self._apply, summary="read the approvals", **STORE
        )
        self.stored = found.approvals

    async def _store(self, verdict: ApprovalVerdict, signal: ApprovalSignal) -> None:
        command = DirectApproval(
            **self._apply.model_dump(),
            approval_id=signal.approval_id,
            actor=signal.actor,
            verdict=verdict,
            reason=signal.reason,
        )
        await workflow.execute_local_activity_method(
            ApplyActivityStubs.record_direct_approval,
            command,
            summary=one_line(f"store a direct signal: {signal.actor} {verdict}"),
            **STORE,
        )
