"""Errors of workflows, and how activity failures become them."""

from temporalio.exceptions import ActivityError, ApplicationError

from qmtl_sdk.contracts.applies import ApplyOutcome


class EndedError(Exception):
    """An apply ends before its last step. `outcome` says in which state the world is."""

    def __init__(self, outcome: ApplyOutcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome: ApplyOutcome = outcome
        self.reason = reason


class RejectionError(Exception):
    """The strategy can't be measured. The submission is judged as rejected, with this code and message."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def cancelled(cls) -> "RejectionError":
        """Build the error of a submission that was cancelled."""
        return cls("E_CANCELLED", "the submission was cancelled")


def final_rejection(error: ActivityError, default_code: str) -> RejectionError | None:
    """Return the rejection if the activity failed for good, or None if another try may succeed."""
    cause = error.cause
    if isinstance(cause, ApplicationError) and cause.non_retryable:
        return RejectionError(cause.type or default_code, cause.message)
    return None


def failure_code(error: ActivityError) -> str:
    """Return the error code of an activity that was refused; empty where it failed in another way."""
    return (error.cause.type or "") if isinstance(error.cause, ApplicationError) else ""


def refusal_of(error: ActivityError) -> ApplicationError:
    """Build the error that refuses an update because an activity failed."""
    cause = error.cause
    if isinstance(cause, ApplicationError):
        return ApplicationError(cause.message, *cause.details, type=cause.type, non_retryable=True)
    return ApplicationError(str(cause or error), type="E_INTERNAL", non_retryable=True)


def failure_text(error: ActivityError) -> str:
    """Describe a failed activity to a person: its message and code."""
    cause = error.cause
    return f"{cause.message} [{cause.type}]" if isinstance(cause, ApplicationError) else str(cause or error)
