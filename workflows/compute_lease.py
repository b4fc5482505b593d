"""The compute lease of a submission's run: an activity that a runner outside heartbeats and completes.

At most one runner holds it. When it ends without evidence, the last progress is retained for the next runner.
"""

import asyncio

from temporalio import workflow
from temporalio.exceptions import ActivityError, ApplicationError, is_cancelled_exception
from temporalio.exceptions import TimeoutError as ActivityTimeoutError

from activities.messages.submission import RunCommand
from activities.submissions.lease import compute_lease
from qmtl_sdk.contracts.submission import EvidenceRef, Heartbeat, Lease
from workflows.failures import RejectionError, final_rejection
from workflows.ids import lease_activity_id, lease_id
from workflows.options import lease_options


class ComputeLease:
    """Grants the lease to one runner at a time. `runner` is the holder, empty when a runner is needed."""

    def __init__(self, command: RunCommand, heartbeat_timeout_s: float) -> None:
        self.runner = ""
        self.reached = Heartbeat()
        self.cancelled = False
        self.granted = 0
        self._command = command
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._activity_id = ""  # set from the grant until the lease ends
        self._task: asyncio.Task[EvidenceRef] | None = None

    @property
    def lease_id(self) -> str:
        """The id of the present lease; empty if there is none."""
        return lease_id(self._command.run_id, self._activity_id) if self._activity_id else ""

    @property
    def offer(self) -> Lease:
        """The lease that the next `grant` grants."""
        return self._lease(lease_activity_id(self._command.run_id, self.granted + 1))

    def grant(self, runner: str) -> None:
        """Grant a new lease to a runner."""
        self.runner = runner
        self.granted += 1
        self._activity_id = lease_activity_id(self._command.run_id, self.granted)

    def lease_of(self, runner: str) -> Lease | None:
        """Return the lease if this runner holds it. The same runner may request it again."""
        if not runner or runner != self.runner or not self._activity_id:
            return None
        return self._lease(self._activity_id)

    def _lease(self, activity_id: str) -> Lease:
        return Lease(
            lease_id=lease_id(self._command.run_id, activity_id),
            heartbeat_timeout_s=self._heartbeat_timeout_s,
            resume_from=self.reached.json_dict(),
        )

    def cancel(self) -> None:
        """Cancel the lease, now or once it is held. Idempotent."""
        self.cancelled = True
        if self._task is not None and not self._task.done():
            self._task.cancel()

    async def hold(self) -> EvidenceRef | None:
        """Wait for the runner's evidence. Returns None if the runner is gone.

        Raises RejectionError if the runner says that computing again would fail again, or if it was
        cancelled.
        """
        self._task = asyncio.create_task(self._run_activity())
        try:
            return await self._task
        except ActivityError as error:
            self._release(error)
            return None
        except asyncio.CancelledError:
            if not self.cancelled:
                raise
            raise RejectionError.cancelled() from None
        finally:
            self._activity_id = ""

    async def _run_activity(self) -> EvidenceRef:
        options = lease_options(self._activity_id, self._heartbeat_timeout_s, self.runner)
        return await workflow.execute_activity(compute_lease, self._command, **options)

    def _release(self, error: ActivityError) -> None:
        """Retain the progress of a lease that timed out or was given back."""
        if is_cancelled_exception(error) and self.cancelled:
            raise RejectionError.cancelled() from error
        self.runner = ""
        if (rejection := final_rejection(error, "E_COMPUTE_FAILED")) is not None:
            raise rejection from error
        cause = error.cause
        if isinstance(cause, ActivityTimeoutError):
            details = cause.last_heartbeat_details
        elif isinstance(cause, ApplicationError):
            details = cause.details
        else:
            raise error
        if details:
            self.reached = Heartbeat.model_validate(details[0])
