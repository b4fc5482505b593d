"""A Gateway whose fence lacks one check (`QMTL_TEST_LEAK` names it): what the checker must find."""

import os

from activities.fence import rules as fence
from api.gateway import main
from qmtl_sdk.contracts.orders import Refusal
from tests.support.leaks import checks_without

if __name__ == "__main__":
    fence.CHECKS = checks_without(Refusal(os.environ["QMTL_TEST_LEAK"]))
    main()
