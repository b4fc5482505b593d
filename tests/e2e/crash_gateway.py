"""A Gateway that dies between the commit log and the workflow's start, once."""

from api.gateway import main
from qmtl_sdk.contracts.submission import StrategySubmit, SubmissionAck
from temporal.submissions import SubmissionService
from tests.e2e.crash import crash_at

_admit = SubmissionService._admit


async def dying(self: SubmissionService, submit: StrategySubmit, actor: str, limit_s: float) -> SubmissionAck:
    crash_at("before:admit")
    ack = await _admit(self, submit, actor, limit_s)
    crash_at("after:admit")
    return ack


if __name__ == "__main__":
    SubmissionService._admit = dying  # type: ignore[method-assign]
    main()
