"""A Gateway whose fence lacks one check (`QMTL_TEST_LEAK` names it): what the checker must find."""

import os
from collections.abc import Mapping

from activities.fence import rules as fence
from api.gateway import main
from qmtl_sdk.contracts.orders import Refusal


def without(leak: Refusal) -> Mapping[Refusal, fence.Check]:
    """The fence's checks but for one, in their order. Raises KeyError where there is no such check."""
    checks = dict(fence.CHECKS)
    del checks[leak]
    return checks


if __name__ == "__main__":
    fence.CHECKS = without(Refusal(os.environ["QMTL_TEST_LEAK"]))
    main()
