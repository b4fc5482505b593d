"""`qmtl world rebalance-plan`: what it sends to the Gateway."""

from datetime import UTC, datetime
from decimal import Decimal

from api.cli.allocations import _marks
from qmtl_sdk.contracts.ledger import HeldPosition, Position


def held(strategy: str, mark: str, hour: int) -> HeldPosition:
    position = Position(quantity=Decimal(1), mark=Decimal(mark))
    return HeldPosition(
        strategy_id=strategy,
        account="paper",
        symbol="AAPL",
        position=position,
        average=position.average,
        unrealised=position.unrealised,
        updated_at=datetime(2026, 1, 1, hour, tzinfo=UTC),
    )


def test_an_instrument_has_one_mark_whichever_strategy_traded_it_last() -> None:
    """Two strategies that trade at other times have other marks, which a plan refuses."""
    found = [held("strategy:a", "101", 3), held("strategy:b", "99", 1), held("strategy:c", "100", 2)]
    assert _marks(found) == {("paper", "AAPL"): Decimal(101)}
