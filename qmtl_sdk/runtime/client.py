"""The Gateway's HTTP client, for authors' processes and the command."""

from qmtl_sdk.runtime.routes.access import AccessRoutes
from qmtl_sdk.runtime.routes.applies import ApplyRoutes
from qmtl_sdk.runtime.routes.running import RunningRoutes
from qmtl_sdk.runtime.routes.submissions import SubmissionRoutes
from qmtl_sdk.runtime.routes.worlds import WorldRoutes

RUNNING_ANSWER_LIMIT_S = 10.0
"""Seconds in which a Gateway must answer a running strategy: computing waits for as long."""


class GatewayClient(SubmissionRoutes, WorldRoutes, ApplyRoutes, RunningRoutes, AccessRoutes):
    """All routes of a Gateway over one connection pool.

    Every call but a heartbeat is retried while the Gateway is unreachable.

    Raises QmtlError: the Gateway's own error under its code; E_UNAVAILABLE where the Gateway can't be reached
    for `away_limit_s` seconds.
    """

    def for_running(self) -> "GatewayClient":
        """Return a client of the same Gateway for a running strategy, which waits for no Gateway.

        It tries once, and takes a Gateway that hangs for one that is away.
        """
        return GatewayClient(self.url, self.token, away_limit_s=0.0, answer_limit_s=RUNNING_ANSWER_LIMIT_S)
