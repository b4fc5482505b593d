"""References to strategies: an id selects its strategy, whatever the others are named."""

from typing import NamedTuple

import pytest
from pydantic import ValidationError

from qmtl_sdk import QmtlError
from qmtl_sdk.contracts.references import matching_strategies, one_strategy
from qmtl_sdk.contracts.submission import SubmissionMeta

ONE = "strategy:0123456789"
TWO = "strategy:0123999999"


class Known(NamedTuple):
    strategy_id: str
    name: str


@pytest.mark.parametrize(
    ("reference", "named", "found"),
    [
        (ONE, ONE, [ONE]),
        (TWO, ONE, [TWO]),
        ("trend", "trend", [TWO]),
        ("trend", "other", []),
        ("strategy:01234", "other", [ONE]),
        ("strategy:01234", "strategy:01234", [ONE, TWO]),
        ("strategy:0123", "other", [ONE, TWO]),
        ("strateg", "other", []),
        ("strateg", "strateg", [TWO]),
        ("", "", []),
    ],
)
def test_an_id_is_exact_and_what_may_mean_several_means_all_of_them(
    reference: str, named: str, found: list[str]
) -> None:
    """The second strategy has the name `named`."""
    known = [Known(ONE, "first"), Known(TWO, named), Known(ONE, "first")]
    assert [item.strategy_id for item in matching_strategies(reference, known)] == found
    if len(found) == 1:
        assert one_strategy(reference, "w", known).strategy_id == found[0]
        return
    with pytest.raises(QmtlError, match=f"names {len(found)} strategies" if found else "is no strategy"):
        one_strategy(reference, "w", known)


def test_a_name_that_reads_as_an_id_is_refused_where_it_comes_in() -> None:
    for name in (ONE, "strategy:", "strategy:mine"):
        with pytest.raises(ValidationError, match="reads as a strategy_id"):
            SubmissionMeta(name=name)
    assert SubmissionMeta(name="strategy").name == "strategy"
