"""A worker that kills something at one step, once.

`QMTL_TEST_CRASH=before:admit_run` names the step, `QMTL_TEST_CRASH_PID` whom (itself unless given),
`QMTL_TEST_CRASH_MARK` a file that says that it was done.
"""

import os
import signal
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from temporal.worker import main


class CrashOnce(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Crash(next)


class _Crash(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        name = activity.info().activity_type
        crash_at(f"before:{name}")
        result = await super().execute_activity(input)
        crash_at(f"after:{name}")
        return result


def crash_at(step: str) -> None:
    mark = Path(os.environ["QMTL_TEST_CRASH_MARK"])
    if os.environ["QMTL_TEST_CRASH"] == step and not mark.exists():
        mark.write_text(step)
        os.kill(int(os.environ.get("QMTL_TEST_CRASH_PID") or os.getpid()), signal.SIGKILL)


if __name__ == "__main__":
    main([CrashOnce()])
