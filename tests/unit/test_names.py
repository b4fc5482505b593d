"""Names of strategies: of the newest decision, and of strategies that it does not name."""

from typing import Any

import pytest

from api.cli.names import StrategyNames, strategy_ids
from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.decisions import DecisionEnvelope, StrategyDecision
from qmtl_sdk.contracts.worlds import BindingInfo

NEW, OLD = (f"strategy:{letter * 64}" for letter in "ab")


class Gateway:
    """Knows a strategy by the newest decision, and an older one by its submission."""

    def decisions(self, _: str) -> list[DecisionEnvelope]:
        item = StrategyDecision.model_construct(strategy_id=NEW, name="Trend")
        return [DecisionEnvelope.model_construct(strategies=(item,))]

    def bindings(self, _: str) -> list[BindingInfo]:
        return [
            BindingInfo.model_construct(strategy_id=key, name=name)
            for key, name in ((OLD, "Carry"), (NEW, "Trend"))
        ]


@pytest.fixture
def gateway() -> Any:
    return Gateway()


def test_orders_of_a_strategy_that_the_newest_decision_does_not_name_are_found(gateway: Any) -> None:
    for text in ("Carry", OLD, OLD[:20]):
        assert strategy_ids(gateway, "w", [text, "Trend"], older=True) == {text: OLD, "Trend": NEW}
    with pytest.raises(QmtlError, match="did you mean 'Carry'"):
        strategy_ids(gateway, "w", ["Carr"], older=True)


def test_what_acts_on_strategies_takes_those_of_the_newest_decision(gateway: Any) -> None:
    with pytest.raises(QmtlError, match="'Carry' is no strategy of w"):
        strategy_ids(gateway, "w", ["Carry"])


def test_orders_of_an_older_strategy_are_listed_with_its_name(gateway: Any) -> None:
    names = StrategyNames(gateway, "w")
    assert [names[key] for key in (OLD, NEW, "strategy:unknown")] == ["Carry", "Trend", "strategy:unknown"]
