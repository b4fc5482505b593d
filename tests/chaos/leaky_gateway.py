"""A Gateway with a defect, which the checker must find.

Its fence lacks the check that `QMTL_TEST_LEAK` names, or it has the defect of `QMTL_TEST_SABOTAGE`.
"""

import os

from activities.fence import rules as fence
from api.gateway import main
from qmtl_sdk.contracts.refusals import Refusal
from tests.support.leaks import checks_without
from tests.support.sabotage import SABOTAGES

if __name__ == "__main__":
    if sabotage := os.environ.get("QMTL_TEST_SABOTAGE"):
        SABOTAGES[sabotage].put_in()
    else:
        fence.CHECKS = checks_without(Refusal(os.environ["QMTL_TEST_LEAK"]))
    main()
