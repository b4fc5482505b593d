"""A Gateway whose fence lacks one check (`QMTL_TEST_LEAK` names it): what the checker must find."""

import os

from activities.orders.fence import CHECKS
from api.gateway import main
from qmtl_sdk.contracts.orders import Refusal

if __name__ == "__main__":
    del CHECKS[Refusal(os.environ["QMTL_TEST_LEAK"])]
    main()
