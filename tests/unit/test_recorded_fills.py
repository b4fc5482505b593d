"""Fills that are reported again and again are recorded once."""

from decimal import Decimal

from activities.brokers.recorded import RecordedFills
from qmtl_sdk.contracts.fills import Fill
from qmtl_sdk.contracts.orders import OrderReport


def fill(name: str, price: str = "100") -> Fill:
    return Fill(fill_id=name, quantity=Decimal(1), price=Decimal(price), account="paper")


def report(*fills: Fill, state: str = "partially_filled", order_id: str = "o1") -> OrderReport:
    return OrderReport.model_validate({"order_id": order_id, "state": state, "fills": fills})


def test_what_was_recorded_is_left_out_and_all_else_is_not() -> None:
    recorded = RecordedFills()
    first = [report(fill("a"), fill("b"))]
    assert recorded.without(first) == first
    assert recorded.without(first) == first, "only what was recorded is known"
    recorded.note(first)
    again = report(fill("a"), fill("b"), fill("c"))
    assert recorded.without([again]) == [report(fill("c"))]
    assert recorded.without(first) == [report()]
    assert recorded.without([report(fill("a"), order_id="o2")]) == [report(fill("a"), order_id="o2")]
    changed = [report(fill("a", "101"))]
    assert recorded.without(changed) == changed, "an id with another content must be noticed"


def test_the_end_of_an_order_is_reported_and_forgotten() -> None:
    recorded = RecordedFills()
    recorded.note([report(fill("a"))])
    end = report(fill("a"), fill("b"), state="filled")
    assert recorded.without([end]) == [report(fill("b"), state="filled")]
    recorded.note([end])
    assert recorded.without([end]) == [end]
