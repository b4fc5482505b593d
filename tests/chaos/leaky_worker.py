"""A worker with the defect that `QMTL_TEST_SABOTAGE` names, which the checker must find."""

import os

from temporal.worker import main
from tests.support.rebalancing_sabotage import REBALANCING_SABOTAGES

if __name__ == "__main__":
    REBALANCING_SABOTAGES[os.environ["QMTL_TEST_SABOTAGE"]].put_in()
    main()
