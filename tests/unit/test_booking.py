"""Booking in double entry: worked cases, and properties over any sequence of entries."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from activities.fence.ledger_entries import fill_entry
from activities.ledger.booking import DatedEntry, History, book, postings, reverse
from qmtl_sdk.contracts.amounts import EXACT, exact_sum, negated, plain, rounded
from qmtl_sdk.contracts.fills import Fill, Side, filled_by
from qmtl_sdk.contracts.ledger import Booking, Entry, EntryKind, Position

D = Decimal


def fill(quantity: str, price: str, fee: str = "0") -> Entry:
    return entry(EntryKind.FILL, quantity=D(quantity), price=D(price), fee=D(fee))


def entry(kind: EntryKind, **fields: object) -> Entry:
    return Entry.model_validate(
        {"kind": kind, "ref": "r", "strategy_id": "s", "account": "paper", "symbol": "AAPL", **fields}
    )


def after(*entries: Entry) -> Position:
    found = Position()
    for at, each in enumerate(entries, 1):
        _, found = book(found, each, str(at))
    return found


def test_only_what_has_a_price_dates_a_mark() -> None:
    others = [
        entry(EntryKind.DIVIDEND, cash=D(1)),
        entry(EntryKind.FEE, fee=D(1)),
        entry(EntryKind.SPLIT, ratio=D(2)),
    ]
    assert after(*others).marked_at == ""
    assert after(fill("4", "6"), *others).marked_at == "1"
    adjustment = entry(EntryKind.ADJUSTMENT, quantity=D(1), price=D(5))
    assert after(fill("4", "6"), *others, adjustment).marked_at == "5"


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        # entries → quantity, cost, realised, fees, cash
        ([fill("10", "5", "1")], ("10", "50", "0", "1", "-51")),
        ([fill("10", "5"), fill("10", "7")], ("20", "120", "0", "0", "-120")),
        ([fill("10", "5"), fill("-4", "8")], ("6", "30", "12", "0", "-18")),
        ([fill("10", "5"), fill("-10", "8", "2")], ("0", "0", "30", "2", "28")),
        ([fill("10", "5"), fill("-15", "8")], ("-5", "-40", "30", "0", "70")),
        ([fill("-5", "8")], ("-5", "-40", "0", "0", "40")),
        ([fill("-5", "8"), fill("2", "10")], ("-3", "-24", "-4", "0", "20")),
        ([fill("-5", "8"), fill("5", "6")], ("0", "0", "10", "0", "10")),
        ([fill("-5", "8"), fill("8", "6")], ("3", "18", "10", "0", "-8")),
        # a third cannot be written: what is left keeps the remainder, and closing all leaves none
        (
            [fill("3", "0.333333333333"), fill("-1", "1")],
            ("2", "0.666666666666", "0.666666666667", "0", "0.000000000001"),
        ),
        ([fill("3", "1"), fill("-1", "1"), fill("-1", "1"), fill("-1", "1")], ("0", "0", "0", "0", "0")),
        # a rebate is a fee below zero
        ([fill("10", "5", "-0.5")], ("10", "50", "0", "-0.5", "-49.5")),
    ],
)
def test_worked_cases(entries: list[Entry], expected: tuple[str, ...]) -> None:
    found = after(*entries)
    got = (found.quantity, found.cost, found.realised, found.fees, found.cash)
    assert got == tuple(map(D, expected))


def test_a_dividend_is_income_and_a_fee_is_none() -> None:
    found = after(
        fill("10", "5"), entry(EntryKind.DIVIDEND, cash=D("3")), entry(EntryKind.FEE, fee=D("0.25"))
    )
    assert (found.income, found.fees, found.cash) == (D(3), D("0.25"), D("-47.25"))
    assert found.quantity == 10


def test_a_split_changes_the_units_and_not_what_they_cost() -> None:
    found = after(fill("10", "8"), entry(EntryKind.SPLIT, ratio=D(4)))
    assert (found.quantity, found.cost, found.mark, found.unrealised) == (D(40), D(80), D(2), D(0))


def test_a_reversal_leaves_a_position_as_if_its_fill_had_never_been_booked() -> None:
    good, wrong = fill("4", "6").model_copy(update={"ref": "good"}), fill("10", "5", "1")
    before = after(good, wrong)
    moved, found = reverse(
        before,
        entry(EntryKind.REVERSAL, ref="back", reverses="r"),
        History(entries=(DatedEntry("1", good), DatedEntry("2", wrong))),
    )
    assert found == after(good)
    assert (moved.quantity, moved.cash, moved.fee) == (D(-10), D(50), D(-1))
    assert exact_sum(posting.amount for posting in postings(moved) if posting.commodity == "money") == 0


amounts = st.decimals("0.000000000001", "9999999999999999", places=12)
signed = st.builds(lambda value, sign: value * sign, amounts, st.sampled_from([1, -1]))
fees = st.decimals("-999999", "999999", places=12)
entries_of_any_kind = st.one_of(
    st.builds(
        lambda kind, quantity, price, fee: entry(kind, quantity=quantity, price=price, fee=fee),
        st.sampled_from([EntryKind.FILL, EntryKind.ADJUSTMENT]),
        signed,
        amounts,
        fees,
    ),
    st.builds(lambda cash: entry(EntryKind.DIVIDEND, cash=cash), signed),
    st.builds(lambda fee: entry(EntryKind.FEE, fee=fee), signed),
    st.builds(lambda ratio: entry(EntryKind.SPLIT, ratio=ratio), st.decimals("0.01", "100", places=4)),
)


@settings(max_examples=1000, deadline=None)
@given(st.lists(entries_of_any_kind, max_size=12))
def test_every_sum_is_exact_whatever_is_booked(given_entries: list[Entry]) -> None:
    position, accounts = Position(), dict[tuple[str, str], Decimal]()
    for each in given_entries:
        booked, position = book(position, each)
        for posting in postings(booked):
            key = (posting.account, posting.commodity)
            accounts[key] = EXACT.add(accounts.get(key, D(0)), posting.amount)
    commodities = {commodity for _, commodity in accounts}
    for commodity in commodities:
        assert exact_sum(amount for (_, of), amount in accounts.items() if of == commodity) == 0
    assert accounts.get(("position:paper", "AAPL"), D(0)) == position.quantity
    assert accounts.get(("cash:paper", "money"), D(0)) == position.cash
    fees_of = (position.realised, position.income, negated(position.fees), negated(position.cost))
    assert position.cash == exact_sum(fees_of)
    assert position.quantity != 0 or position.cost == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(signed, amounts), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_the_order_of_fills_changes_neither_holding_nor_cash(
    trades: list[tuple[Decimal, Decimal]], shuffle: object
) -> None:
    entries = [fill(str(quantity), str(price)) for quantity, price in trades]
    mixed = list(entries)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    one, other = after(*entries), after(*mixed)
    assert (one.quantity, one.cash) == (other.quantity, other.cash)


@given(st.decimals("-1e20", "1e20", places=18))
def test_numbers_are_plain(value: Decimal) -> None:
    found = plain(value)
    assert found == value
    assert "E" not in f"{found}" or abs(found) < D("1e-6")
    assert abs(rounded(value) - value) <= D("5e-13")


def test_zeros_at_the_end_of_a_number_are_not_stored() -> None:
    """They count as no digits, and a number of a million of them was stored with each position after it."""
    body = {"fill_id": "f", "quantity": "1." + "0" * 900_000, "price": "2.50", "account": "paper"}
    found = Fill.model_validate(body)
    assert (str(found.quantity), str(found.price)) == ("1", "2.5")


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "dividend"},
        {"kind": "dividend", "amount": "1", "quantity": "2"},
        {"kind": "split", "ratio": "0"},
        {"kind": "split", "ratio": "-2"},
        {"kind": "adjustment", "quantity": "1"},
        {"kind": "adjustment", "quantity": "1", "price": "0"},
        {"kind": "reversal", "amount": "1"},
        {"kind": "fill", "quantity": "1", "price": "1"},
        {"kind": "fee", "amount": "NaN"},
        {"kind": "fee", "amount": "Infinity"},
        {"kind": "fee", "amount": "1", "reason": ""},
    ],
)
def test_a_booking_names_what_its_kind_needs_and_nothing_else(wrong: dict[str, str]) -> None:
    base = {"booking_id": "b", "strategy_id": "s", "account": "paper", "symbol": "AAPL", "reason": "why"}
    with pytest.raises(ValidationError):
        Booking.model_validate({**base, **wrong})


@pytest.mark.parametrize(("side", "held"), [("buy", "0.999"), ("sell", "-1.001")])
def test_a_fee_in_units_changes_the_position_and_costs_its_price(side: Side, held: str) -> None:
    """The venue holds that much, and has moved the money of the whole fill."""
    fill = Fill(fill_id="f", quantity=D(1), price=D(100), fee_units=D("0.001"), account="spot")
    entry, position = book(Position(), fill_entry("order-1", "s", "BTC", side, fill))
    assert (position.quantity, position.fees, position.realised) == (D(held), D("0.1"), D(0))
    assert position.cash == (D(-100) if side == "buy" else D(100))
    sums = {line.commodity: D(0) for line in postings(entry)}
    for line in postings(entry):
        sums[line.commodity] += line.amount
    assert set(sums.values()) == {D(0)}
    whole = filled_by([fill])
    assert whole is not None
    assert (whole.quantity, whole.fee) == (D(1), D("0.1"))
