"""An order router with the defect that `QMTL_TEST_SABOTAGE` names, which the checker must find."""

import os
import sys

from activities.brokers.router import _open
from activities.process import run_process
from tests.support.rebalancing_sabotage import REBALANCING_SABOTAGES
from tests.support.sabotage import SABOTAGES

if __name__ == "__main__":
    (SABOTAGES | REBALANCING_SABOTAGES)[os.environ["QMTL_TEST_SABOTAGE"]].put_in()
    sys.exit(run_process("router", _open))
