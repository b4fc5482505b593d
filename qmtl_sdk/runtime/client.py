"""The Gateway's HTTP client, for authors' processes and the command."""

from qmtl_sdk.runtime.config import Settings
from qmtl_sdk.runtime.routes.access import AccessRoutes
from qmtl_sdk.runtime.routes.allocations import AllocationRoutes
from qmtl_sdk.runtime.routes.applies import ApplyRoutes
from qmtl_sdk.runtime.routes.ledger import LedgerRoutes
from qmtl_sdk.runtime.routes.running import RunningRoutes
from qmtl_sdk.runtime.routes.submissions import SubmissionRoutes
from qmtl_sdk.runtime.routes.worlds import WorldRoutes

TEST_AWAY_LIMIT_S = 2.0
"""Seconds of retries with `test.test_mode` before an unreachable Gateway is an error."""

TEST_ANSWER_LIMIT_S = 15.0
"""Seconds in which an answer must arrive with `test.test_mode`: longer than a request waits for a change."""

RUNNING_ANSWER_LIMIT_S = 10.0
"""Seconds in which a Gateway must answer a running strategy: computing waits for as long."""


class GatewayClient(
    SubmissionRoutes, WorldRoutes, ApplyRoutes, RunningRoutes, LedgerRoutes, AllocationRoutes, AccessRoutes
):
    """All routes of a Gateway over one connection pool.

    Every call but a heartbeat is retried while the Gateway is unreachable.

    Raises QmtlError: the Gateway's own error under its code; E_UNAVAILABLE where the Gateway can't be reached
    for `away_limit_s` seconds.
    """

    @classmethod
    def configured(cls, url: str, config: Settings) -> "GatewayClient":
        """Return a client with the configured token, and with short time limits in test mode."""
        if config.test.test_mode:
            return cls(url, config.token, TEST_AWAY_LIMIT_S, TEST_ANSWER_LIMIT_S)
        return cls(url, config.token)

    def for_running(self) -> "GatewayClient":
        """Return a client of the same Gateway for a running strategy, which waits for no Gateway.

        It tries once, and takes a Gateway that hangs for one that is away.
        """
        return GatewayClient(self.url, self.token, away_limit_s=0.0, answer_limit_s=RUNNING_ANSWER_LIMIT_S)
