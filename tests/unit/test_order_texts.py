"""What the command prints about orders: what became of them, how many were held back, what cancelling did."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from api.cli.cancel import cancel_text
from api.cli.orders import order_detail
from api.cli.text.status import fence_text
from qmtl_sdk.contracts.applies import FenceStatus
from qmtl_sdk.contracts.orders import CancelResult, Order, OrderRecord, order_id_prefix
from tests.support import ROOT

ORDER = Order.model_validate(
    {
        "order_id": order_id_prefix("w", "s") + "1",
        "world_id": "w",
        "strategy_id": "s",
        "execution_domain": "dryrun",
        "epoch": 1,
        "symbol": "AAPL",
        "side": "buy",
        "quantity": "2",
    }
)


def test_what_was_filled_is_listed_with_its_average_price() -> None:
    record = OrderRecord.model_validate(
        {
            "seq": 1,
            "at": datetime(2024, 1, 1, tzinfo=UTC),
            "order": ORDER,
            "accepted": True,
            "state": "filled",
            "fill": {"quantity": "2", "price": "10", "fee": "0", "account": "paper"},
        }
    )
    assert order_detail(record) == "2 at 10 by paper"


def test_the_status_of_a_world_shows_withheld_orders_apart_from_refused_ones() -> None:
    fence = FenceStatus(
        world_id="w",
        epoch=2,
        state="open",
        allow_live=False,
        live_edge=False,
        open_orders=1,
        orders={"accepted": 4, "withheld": 3, "halted": 2},
    )
    assert fence_text(fence)[-1] == "orders     4 accepted, 1 open; 3 withheld; refused: 2 halted"


@pytest.mark.parametrize(
    ("cancelled", "requested", "given", "rest"),
    [(1, 2, 3, ""), (0, 0, 1, "; not open, or asked before: 1 of the ids given"), (5, 0, 0, "")],
)
def test_a_request_to_cancel_says_how_many_ids_changed_nothing(
    cancelled: int, requested: int, given: int, rest: str
) -> None:
    done = CancelResult(cancelled=cancelled, requested=requested)
    assert cancel_text(done, given) == f"{cancelled} cancelled; venues are asked to cancel {requested}{rest}"


def test_a_chaos_suite_that_does_not_exist_is_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "nonsense"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("there is no suite 'nonsense'; the suites are stream, orders,")
    assert done.stderr.count("\n") == 1
