"""A broker's books against ours: what differs, since when, and which worlds that concerns."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from activities.brokers.comparison import Looked, compare_positions, reasons_to_halt, stray_orders
from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.reconciliation import Reconciliation

START = datetime(2026, 1, 1, tzinfo=UTC)
D = Decimal


def looked(second: float, held: dict[str, dict[str, str]], *traded: str) -> Looked:
    """A look so many seconds after the first."""
    worlds = {symbol: {world: D(text) for world, text in each.items()} for symbol, each in held.items()}
    return Looked(START + timedelta(seconds=second), worlds, traded, {"quiet"})


def result(look: Looked, broker: dict[str, str], before: Reconciliation | None = None) -> Reconciliation:
    theirs = {symbol: D(text) for symbol, text in broker.items()}
    return Reconciliation(
        account="acct",
        domain=Domain.LIVE,
        at=look.at,
        positions=tuple(compare_positions(look, theirs, before)),
    )


def reasons(found: Reconciliation, patience_s: float = 5.0) -> dict[str, str]:
    return reasons_to_halt(found, timedelta(seconds=patience_s))


def test_positions_of_all_worlds_add_up_and_only_what_differs_is_a_reason() -> None:
    look = looked(0, {"A": {"x": "1", "y": "2"}, "B": {"y": "-4"}})
    found = result(look, {"A": "3", "B": "-3.5"})
    assert [(item.symbol, item.ledger, item.broker, item.difference) for item in found.positions] == [
        ("B", D(-4), D("-3.5"), D("0.5")),
        ("A", D(3), D(3), D(0)),
    ]
    assert reasons(found) == {}, "it may be on its way"
    later = result(looked(6, {"A": {"x": "1", "y": "2"}, "B": {"y": "-4"}}), {"A": "3", "B": "-3.5"}, found)
    assert reasons(later) == {"y": "reconciliation of acct: -3.5 B at the broker, -4 in the ledger"}


def test_a_difference_counts_from_the_look_that_first_saw_the_same_figure() -> None:
    held = {"A": {"x": "1"}}
    first = result(looked(0, held), {"A": "2"})
    other = result(looked(4, held), {"A": "3"}, first)
    assert reasons(result(looked(8, held), {"A": "3"}, other)) == {}
    gone = result(looked(9, held), {"A": "1"}, other)
    again = result(looked(12, held), {"A": "3"}, gone)
    assert reasons(again) == {}
    assert reasons(result(looked(18, held), {"A": "3"}, again)).keys() == {"x"}


def test_a_position_that_is_traded_during_a_look_is_not_judged_in_it() -> None:
    held = {"A": {"x": "1"}}
    first = result(looked(0, held, "A"), {"A": "2"})
    assert first.positions[0].since is None
    second = result(looked(6, held), {"A": "2"}, first)
    assert reasons(second) == {}
    third = result(looked(12, held, "A"), {"A": "2"}, second)
    assert reasons(third) == {}
    fourth = result(looked(13, held), {"A": "2"}, third)
    assert reasons(fourth).keys() == {"x"}, "trading on does not hide what differed before"


def test_what_differed_before_a_long_time_without_books_says_nothing() -> None:
    first = result(looked(0, {"A": {"x": "100"}}), {"A": "101"})
    hours = 2 * 3600
    second = result(looked(hours, {"A": {"x": "500"}}), {"A": "501"}, first)
    assert reasons(second) == {}


def test_what_no_world_holds_concerns_all_that_trade_or_hold_anything_there() -> None:
    first = result(looked(0, {"A": {"x": "1"}}), {"A": "1", "Z": "7"})
    second = result(looked(6, {"A": {"x": "1"}}), {"A": "1", "Z": "7"}, first)
    text = "reconciliation of acct: 7 Z at the broker, 0 in the ledger"
    assert reasons(second) == {"quiet": text, "x": text}


def test_a_reason_names_two_figures_and_counts_the_others() -> None:
    held = {name: {"x": "1"} for name in "ABCD"}
    first = result(looked(0, held), {})
    found = reasons(result(looked(6, held), {}, first))
    assert found == {
        "x": "reconciliation of acct: 0 A at the broker, 1 in the ledger; "
        "0 B at the broker, 1 in the ledger; and 2 more"
    }


def test_an_order_that_is_open_only_there_is_a_reason_for_the_world_that_placed_it() -> None:
    look = looked(0, {"A": {"x": "1"}})
    orders = stray_orders(look, {"o1": "y", "o2": ""}, None)
    first = Reconciliation(account="acct", domain=Domain.LIVE, at=look.at, orders=orders)
    assert reasons(first) == {}
    later = looked(6, {"A": {"x": "1"}})
    second = first.model_copy(
        update={"at": later.at, "orders": stray_orders(later, {"o1": "y", "o2": ""}, first)}
    )
    found = reasons(second)
    assert found["y"] == "reconciliation of acct: order o1 is open at the broker, not here"
    assert found.keys() == {"quiet", "x", "y"}, "o2 is of nobody"


def test_a_world_sees_what_concerns_it() -> None:
    found = result(looked(0, {"A": {"x": "1"}, "B": {"y": "1"}}), {"A": "1", "B": "2"})
    mine = found.of_world("x")
    assert [(item.symbol, item.worlds) for item in mine.positions] == [("A", ("x",))]
    assert (found.differences, mine.differences) == (1, 0)
