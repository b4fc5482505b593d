"""Allocations in the store, and plans against them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from activities.allocation.store import SqlAllocations
from activities.fence.scales import Scale, WorldScales
from activities.storage.database import Database
from qmtl_sdk.contracts.allocations import AllocationUpdate
from qmtl_sdk.contracts.capital import StrategyCapital
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.rebalancing import MultiWorldRebalanceRequest
from tests.support.desk import Desk

D = Decimal


@pytest.fixture
def store(database: Database) -> SqlAllocations:
    for world in ("a", "b", "c"):
        Desk(database, world)
    return SqlAllocations(database)


def update(etag: str = "", **weights: str) -> AllocationUpdate:
    items = [{"world_id": world, "weight": weight} for world, weight in weights.items()]
    return AllocationUpdate.model_validate({"allocations": items, "etag": etag})


def refusal(attempt: Callable[[], object]) -> QmtlError:
    with pytest.raises(QmtlError) as error:
        attempt()
    return error.value


def weights(store: SqlAllocations) -> dict[str, Decimal]:
    return {item.world_id: item.weight for item in store.snapshot().allocations}


def test_the_others_keep_their_shares(store: SqlAllocations) -> None:
    assert store.snapshot().updated_at is None
    first = store.update(update(a="0.3", b="0.5"), "olga")
    second = store.update(update(a="0.2", c="0.1"), "olga")
    assert weights(store) == {"a": D("0.2"), "b": D("0.5"), "c": D("0.1")}
    assert first.etag != second.etag == store.snapshot().etag
    assert store.update(update(a="0.2"), "ben") == second, "nothing is set again"


def test_the_share_of_a_strategy_is_its_weight_as_rebalancings_left_it(database: Database) -> None:
    desk = Desk(database, capital={"amount": "1000"})
    store, strategy = SqlAllocations(database), desk.strategies[0]
    weight = D(str(desk.fence.activations("w")[0].weight))
    assert weight > 0
    store.update(update(w="0.3"), "olga")
    held = StrategyCapital(world_share=D("0.3"), weight=weight, amount=1000 * weight, currency="USD")
    assert store.strategy_capital("w", strategy) == held
    assert held.text.endswith(" of the world's capital; the world's share is 0.3")
    assert StrategyCapital(weight=D("0.5")).text == "its weight 0.5 of the world's capital"
    scales = WorldScales(world=Scale(fraction="1/2")).model_dump_json()
    with database.write("test", bookkeeping=True) as tx:
        tx.connection.execute(text("UPDATE allocation SET scales = :scales"), {"scales": scales})
    half = {"weight": weight / 2, "amount": 500 * weight}
    assert store.strategy_capital("w", strategy) == held.model_copy(update=half)
    assert store.strategy_capital("w", "strategy:unknown").weight == 0
    assert refusal(lambda: store.strategy_capital("nowhere", strategy)).code == "E_WORLD_UNKNOWN"


def test_all_worlds_together_have_no_more_than_the_capital(store: SqlAllocations) -> None:
    store.update(update(a="0.6", b="0.3"), "olga")
    before = store.snapshot()
    error = refusal(lambda: store.update(update(c="0.100000000001"), "olga"))
    assert error.code == "E_WEIGHT"
    assert "1.000000000001" in error.message
    assert refusal(lambda: store.update(update(c="0.05", nowhere="0.05"), "olga")).code == "E_WORLD_UNKNOWN"
    assert store.snapshot() == before
    store.update(update(b="0.2", c="0.2"), "olga")


def test_what_was_read_must_still_hold(store: SqlAllocations) -> None:
    old = store.update(update(a="0.3"), "olga").etag
    present = store.update(update(b="0.3"), "olga").etag
    error = refusal(lambda: store.update(update(old, a="0.1"), "olga"))
    assert (error.code, error.details["etag"]) == ("E_ETAG", present)
    assert weights(store)["a"] == D("0.3")
    store.update(update(present, a="0.1"), "olga")


def test_shares_that_are_set_at_once_never_exceed_the_capital(store: SqlAllocations) -> None:
    """Each would fit alone."""

    def attempt(world: str) -> str:
        try:
            store.update(update(**{world: "0.4"}), "olga")
        except QmtlError as error:
            return error.code
        return "set"

    with ThreadPoolExecutor(3) as pool:
        done = sorted(pool.map(attempt, ["a", "b", "c"]))
    assert done == ["E_WEIGHT", "set", "set"]
    assert sum(weights(store).values()) == D("0.8")


def test_a_plan_rests_on_the_present_allocations_and_evidence(store: SqlAllocations) -> None:
    etag = store.update(update(a="0.3"), "olga").etag
    body: dict[str, Any] = {
        "schema_version": 2,
        "worlds": [{"world_id": "a", "before": "0.3", "after": "0.2"}],
        "positions": [
            {
                "world_id": "a",
                "strategy_id": "strategy:a0",
                "venue": "paper",
                "symbol": "AAPL",
                "quantity": "3",
                "mark": "100",
            }
        ],
        "instruments": {"lot": "1"},
        "allocations_etag": etag,
    }
    plan = store.plan(MultiWorldRebalanceRequest.model_validate(body))
    assert [(delta.quantity, delta.notional) for delta in plan.deltas] == [(D(-1), D(-100))]
    assert plan.alpha_metrics is not None
    assert plan.alpha_metrics.per_strategy == {"a": {"strategy:a0": {"sharpe": 1.0}}}
    store.update(update(b="0.1"), "olga")
    stale = MultiWorldRebalanceRequest.model_validate(body)
    assert refusal(lambda: store.plan(stale)).code == "E_ETAG"
    unknown = MultiWorldRebalanceRequest.model_validate(
        {"worlds": [{"world_id": "nowhere", "before": "0", "after": "0.2"}]}
    )
    assert refusal(lambda: store.plan(unknown)).code == "E_WORLD_UNKNOWN"
