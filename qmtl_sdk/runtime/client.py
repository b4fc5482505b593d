"""The Gateway's HTTP client, for authors' processes and the command."""

from qmtl_sdk.runtime.routes.access import AccessRoutes
from qmtl_sdk.runtime.routes.applies import ApplyRoutes
from qmtl_sdk.runtime.routes.running import RunningRoutes
from qmtl_sdk.runtime.routes.submissions import SubmissionRoutes
from qmtl_sdk.runtime.routes.worlds import WorldRoutes


class GatewayClient(SubmissionRoutes, WorldRoutes, ApplyRoutes, RunningRoutes, AccessRoutes):
    """All routes of a Gateway over one connection pool.

    Every call but a heartbeat is retried while the Gateway is unreachable.

    Raises QmtlError: the Gateway's own error under its code; E_UNAVAILABLE where the Gateway can't be reached
    for `away_limit_s` seconds.
    """
