"""Commands about shares of the capital: what they send to the Gateway, and what they refuse."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from typer.testing import CliRunner

from activities.storage.transactions import utc_text
from api.cli.rebalance_schedules import app
from qmtl_sdk.contracts.ledger import HeldPosition, Position
from qmtl_sdk.contracts.share_changes import newest_marks


def held(strategy: str, mark: str, hour: int) -> HeldPosition:
    traded_at = datetime(2026, 1, 1, hour, tzinfo=UTC)
    position = Position(quantity=Decimal(1), mark=Decimal(mark), marked_at=utc_text(traded_at))
    return HeldPosition(
        strategy_id=strategy,
        account="paper",
        symbol="AAPL",
        position=position,
        average=position.average,
        unrealised=position.unrealised,
        updated_at=datetime(2026, 1, 1, 4 - hour, tzinfo=UTC),  # a dividend, which says nothing of the price
    )


def test_an_instrument_has_one_mark_whichever_strategy_traded_it_last() -> None:
    """Two strategies that trade at other times have other marks, which a plan refuses."""
    found = [held("strategy:a", "101", 3), held("strategy:b", "99", 1), held("strategy:c", "100", 2)]
    assert newest_marks(found) == {("paper", "AAPL"): Decimal(101)}


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("fx=30%",), "'fx=30%' is no share"),
        (("fx=0.3:5%",), "'fx=0.3:5%' is no share"),
        (("fx=0.3", "--tolerance", "5%"), "--tolerance 0.01"),
        (("fx", "--cap", "60%"), "--cap 0.6"),
        (("fx=1.5",), "'fx=1.5': a share is between 0 and 1"),
        (("fx=-0.1",), "'fx=-0.1': a share is between 0 and 1"),
        (("fx=nan",), "'fx=nan': a share is between 0 and 1"),
        (("fx=",), "is no world of a schedule"),
    ],
)
def test_a_share_of_a_schedule_that_is_no_number_is_refused_with_how_to_write_one(
    words: tuple[str, ...], wrong: str
) -> None:
    found = CliRunner().invoke(app, ["rebalance-schedule", "set", "bands", *words])
    assert found.exit_code == 1
    assert wrong in found.output
