"""Models of values that were checked as they were written."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from qmtl_sdk.contracts.ledger import HeldPosition, Position


def test_a_trusted_model_is_one_that_was_checked() -> None:
    values: dict[str, Any] = {
        "strategy_id": "s",
        "account": "paper",
        "symbol": "AAPL",
        "position": Position(quantity=Decimal(3), cost=Decimal(10)),
        "average": Decimal("3.333333333333"),
        "unrealised": Decimal(-10),
        "updated_at": datetime(2026, 1, 2, tzinfo=UTC),
    }
    checked, trusted = HeldPosition(**values), HeldPosition.trusted(**values)
    assert trusted == checked
    assert repr(trusted) == repr(checked)
    assert trusted.model_dump_json(exclude_unset=True) == checked.model_dump_json(exclude_unset=True)
    assert trusted.model_copy(update={"symbol": "MSFT"}) == checked.model_copy(update={"symbol": "MSFT"})
    with pytest.raises(ValidationError):
        trusted.symbol = "MSFT"  # type: ignore[misc]  # it is frozen
