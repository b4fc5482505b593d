"""A Gateway that dies between the commit log and the workflow's start, once."""

from api.gateway import main
from qmtl_sdk.contracts.submission import Ack, StrategySubmit
from temporal.submissions import Submissions
from tests.e2e.crash import crash_at

_admit = Submissions._admit


async def dying(self: Submissions, submit: StrategySubmit) -> Ack:
    crash_at("before:admit")
    ack = await _admit(self, submit)
    crash_at("after:admit")
    return ack


if __name__ == "__main__":
    Submissions._admit = dying  # type: ignore[method-assign]
    main()
