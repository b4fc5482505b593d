"""What strategies hold and have earned, added up and shown: worked figures, and properties of any."""

from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from activities.ledger.booking import book
from activities.ledger.sums import WorldSums
from api.cli.text.figures import number
from api.cli.text.positions import capital_text
from qmtl_sdk.contracts.amounts import EXACT, exact_sum
from qmtl_sdk.contracts.capital import Capital
from qmtl_sdk.contracts.ledger import Entry, EntryKind, HeldPosition, Position
from qmtl_sdk.contracts.position_summary import PositionSummary, PositionSums

D = Decimal
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def fill(quantity: str, price: str, fee: str = "0", symbol: str = "AAPL") -> Entry:
    return Entry(
        kind=EntryKind.FILL,
        ref="r",
        strategy_id="s",
        account="paper",
        symbol=symbol,
        quantity=D(quantity),
        price=D(price),
        fee=D(fee),
    )


def after(*entries: Entry) -> Position:
    found = Position()
    for each in entries:
        _, found = book(found, each)
    return found


def held(
    position: Position, symbol: str = "AAPL", strategy: str = "s", account: str = "paper"
) -> HeldPosition:
    return HeldPosition(
        strategy_id=strategy,
        account=account,
        symbol=symbol,
        position=position,
        average=position.average,
        unrealised=position.unrealised,
        updated_at=NOW,
    )


def summary(sums: WorldSums) -> PositionSummary:
    return PositionSummary(world_id="w", midnight=NOW, strategies=sums.strategies(), accounts=sums.accounts())


def figures(sums: PositionSums) -> dict[str, Decimal | int]:
    return {name: getattr(sums, name) for name in PositionSums.model_fields}


def test_worked_figures_of_a_long_a_short_and_a_closed_position() -> None:
    """AAPL: 10 at 100, 4 sold at 110; KO: 5 short at 60, marked at 58; JNJ: 2 bought at 50 and sold at 45."""
    sums = WorldSums(5)
    sums.add(held(after(fill("10", "100", "1"), fill("-4", "110", "1"))), after(fill("10", "100", "1")))
    short = after(fill("-6", "60", "0.5"), fill("1", "58", "0.5"))
    sums.add(held(short, "KO"), short)
    sums.add(held(after(fill("2", "50"), fill("-2", "45")), "JNJ"), Position())
    (found,) = sums.strategies()
    assert figures(found) == {
        "positions": 2,
        "gross": D(660 + 290),
        "net": D(660 - 290),
        "cash": D(-1000 + 440 - 2) + D(360 - 58 - 1) + D(-10),
        "realised": D(40 + 2 - 10),
        "unrealised": D(60 + 10),
        "income": D(0),
        "fees": D(3),
        "profit": D(99),
        # AAPL: 98 less -1 at midnight; KO: nothing has changed; JNJ: all of it
        "profit_today": D(99) + D(0) + D(-10),
    }
    assert figures(sums.accounts()[0]) == figures(found)
    assert [(item.symbol, item.position.quantity) for item in found.largest] == [("AAPL", 6), ("KO", -5)]


def test_simulated_and_real_money_are_never_added_up() -> None:
    sums, one = WorldSums(5), after(fill("1", "100"))
    for strategy, account in (("a", "paper"), ("a", "paper-live"), ("b", "paper"), ("b", "paper")):
        sums.add(held(one, "AAPL", strategy, account), one)
    assert [(each.strategy_id, each.account, each.positions) for each in sums.strategies()] == [
        ("a", "paper", 1),
        ("a", "paper-live", 1),
        ("b", "paper", 2),
    ]
    assert [(each.account, each.gross) for each in sums.accounts()] == [("paper", 300), ("paper-live", 100)]


def test_the_largest_positions_are_those_of_most_value_without_its_sign_and_flat_ones_are_none() -> None:
    sums = WorldSums(3)
    traded = [("1", "5"), ("-2", "9"), ("3", "5"), ("1", "15"), ("9", "1")]
    for number_, (quantity, price) in enumerate(traded):
        sums.add(held(after(fill(quantity, price)), f"S{number_}"), Position())
    sums.add(held(after(fill("7", "900"), fill("-7", "900")), "FLAT"), Position())
    (found,) = sums.strategies()
    assert [item.symbol for item in found.largest] == ["S1", "S2", "S3"], "of equal ones, the first ones"
    assert found.positions == 5
    none = WorldSums(0)
    none.add(held(after(fill("1", "5"))), Position())
    assert none.strategies()[0].largest == ()


_AMOUNT = st.decimals(min_value="0.000000000001", max_value="9999999999999999", places=12)
_FILLS = st.lists(st.tuples(_AMOUNT, _AMOUNT, st.booleans()), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(_FILLS, min_size=1, max_size=5), st.integers(0, 6))
def test_profit_is_cash_and_net_exposure_to_the_last_digit_whatever_was_traded(
    traded: list[list[tuple[Decimal, Decimal, bool]]], known: int
) -> None:
    sums = WorldSums(2)
    today = list[Decimal]()
    for number_, fills in enumerate(traded):
        entries = [
            fill(f"{quantity if buys else -quantity:f}", f"{price:f}") for quantity, price, buys in fills
        ]
        now, midnight = after(*entries), after(*entries[:known])
        sums.add(held(now, f"S{number_}"), midnight)
        profits = [EXACT.add(each.cash, EXACT.multiply(each.quantity, each.mark)) for each in (now, midnight)]
        today.append(EXACT.subtract(*profits))
    (found,) = sums.strategies()
    assert found.profit == EXACT.add(found.cash, found.net)
    assert found.profit_today == exact_sum(today)
    assert found.gross >= found.net.copy_abs()


def test_a_capital_is_shown_with_the_share_that_is_exposed() -> None:
    sums = WorldSums(0)
    sums.add(held(after(fill("-5", "50"))), Position())
    capital = Capital(amount=D(2000))
    assert capital_text(capital, Fraction(1), summary(sums)) == [
        "capital    2000 USD; gross exposure 12.5% of it at paper"
    ]
    assert capital_text(capital, Fraction(2, 3), summary(sums)) == [
        "capital    2000 USD, by rebalancings 1333.33 now; gross exposure 18.8% of it at paper"
    ]
    assert capital_text(capital, Fraction(0), summary(sums)) == [
        "capital    2000 USD, by rebalancings 0.00 now"
    ]
    assert capital_text(capital, Fraction(1), summary(WorldSums(0))) == ["capital    2000 USD"]
    assert capital_text(None, Fraction(1), summary(sums)) == []


def test_a_number_of_any_size_is_shown_with_six_places_at_most() -> None:
    """The product of two amounts has more digits than Python's own context can round."""
    assert number(D("99999999999999979999999999999999.12345678")) == "99999999999999979999999999999999.123457"
    assert [number(D(each)) for each in ("0", "-0.00000001", "1500", "2.50", "-3.1234567")] == [
        "0",
        "0",
        "1500",
        "2.5",
        "-3.123457",
    ]
