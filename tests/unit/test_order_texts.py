"""What the command prints about orders: what became of them, how many were held back, what cancelling did."""

import subprocess
import sys
from datetime import UTC, datetime

import pytest

from api.cli.cancel import cancel_text
from api.cli.names import StrategyNames
from api.cli.order_feed import OrderFeed
from api.cli.text.orders import HEADER, change_line, columns, order_row
from api.cli.text.status import fence_text
from qmtl_sdk.contracts.applies import FenceStatus
from qmtl_sdk.contracts.order_list import OrderFilter
from qmtl_sdk.contracts.orders import CancelResult, Order, OrderRecord, order_id_prefix
from qmtl_sdk.runtime.client import GatewayClient
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


def record(state: str, said: str = "", **fields: object) -> OrderRecord:
    begun, ended = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 1, 0, 0, 9, tzinfo=UTC)
    changes = [{"at": begun, "state": "accepted"}, {"at": ended, "state": state, "reason": said}]
    base = {"seq": 7, "at": begun, "order": ORDER, "accepted": True, "state": state, "changes": changes}
    return OrderRecord.model_validate({**base, **fields})


def test_a_row_of_the_list_says_what_was_ordered_what_was_filled_and_what_became_of_it() -> None:
    filled = {"quantity": "1.5", "price": "10.3333333333", "fee": "0", "account": "paper"}
    found = dict(zip(HEADER, order_row(record("partially_filled", fill=filled), "Trend"), strict=True))
    assert found == {
        "no": "7",
        "when (UTC)": "2024-01-01 00:00:00",
        "strategy": "Trend",
        "domain": "dryrun",
        "origin": "",
        "symbol": "AAPL",
        "side": "buy",
        "quantity": "2",
        "filled": "1.5",
        "price": "10.333333",
        "state": "partially filled",
        "reason": "",
    }


def test_an_order_that_its_strategy_did_not_decide_is_marked() -> None:
    item = record("accepted", order=ORDER.model_copy(update={"origin": "flatten"}))
    assert dict(zip(HEADER, order_row(item, "Trend"), strict=True))["origin"] == "flatten"
    header, line = columns(list(HEADER)), change_line(item, "Trend")
    assert line[header.index("origin") :].startswith("flatten")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (record("cancelled", "olga: too late"), "olga: too late"),
        (record("refused", accepted=False, reason="halted"), "the world is halted"),
        (record("withheld", accepted=False, withheld="the gate is closed"), "the gate is closed"),
    ],
)
def test_a_row_of_the_list_says_why(item: OrderRecord, reason: str) -> None:
    assert order_row(item, "Trend")[-1].startswith(reason)


def test_a_line_of_the_list_that_grows_has_the_columns_of_its_header_and_the_time_of_the_change() -> None:
    header, line = columns(list(HEADER)), change_line(record("cancelled", "too late"), "Trend")
    assert line[header.index("when") :].startswith("2024-01-01 00:00:09")
    for name, value in (("strategy", "Trend"), ("symbol", "AAPL"), ("quantity", "2"), ("reason", "too late")):
        assert line[header.index(name) :].startswith(value)


def test_an_order_that_is_followed_is_shown_again_only_where_it_is_another() -> None:
    """A change between the reading of the log's end and of the newest orders is read twice."""
    shown = list[OrderRecord]()
    feed = OrderFeed("w", OrderFilter(newest=True), lambda found, _: shown.extend(found))
    with GatewayClient("http://127.0.0.1:1", None) as client:
        names = StrategyNames(client, "w")
        some, all_ = (
            {"quantity": quantity, "price": "10", "fee": "0", "account": "paper"} for quantity in ("1", "2")
        )
        states = [
            record("sent"),
            record("partially_filled", fill=some),
            record("partially_filled", fill=all_),
        ]
        for state in states:
            for _ in range(2):
                feed.show_changed([state], names)
    assert shown == states


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


def test_the_status_of_a_world_names_what_a_flatten_has_left() -> None:
    left = {"strategy_id": "s", "account": "paper", "symbol": "AAPL", "quantity": "0.5", "under_way": False}
    why = "nobody closes it: 10 orders were not filled, and the last one was rejected: no"
    fence = {"world_id": "w", "epoch": 1, "state": "open", "allow_live": False, "live_edge": False}
    status = FenceStatus.model_validate({**fence, "unflattened": [{**left, "waits_for": why}]})
    assert f"flatten    s holds 0.5 AAPL in paper: {why}" in fence_text(status)


def test_a_chaos_suite_that_does_not_exist_is_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "nonsense"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith("there is no suite 'nonsense'; the suites are stream, orders,")
    assert done.stderr.count("\n") == 1
