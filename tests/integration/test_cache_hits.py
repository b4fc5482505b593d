"""A cache hit from another context halts its strategy once, however often it is reported."""

from activities.fence.cache_hits import CacheHits, SqlCacheHits
from activities.fence.strategy_halts import SqlStrategyHalts
from activities.storage.database import Database
from tests.support.desk import Desk


def test_a_hit_halts_its_strategy_once_and_again_only_for_another_node_or_session(database: Database) -> None:
    desk, store = Desk(database), SqlCacheHits(database)
    halts = SqlStrategyHalts(database)
    strategy, first, second = desk.strategies[0], desk.session(), desk.session()

    def reported(session: str, *nodes: str) -> bool:
        new = store.halt(CacheHits(session, desk.world, strategy, nodes), "ana")
        assert desk.fence_row().halted == "", "no author halts a world"
        halted = desk.fence.status(desk.world).strategy_halts
        assert bool(halted) is new
        for halt in halted:
            assert f"the session {session[:8]} of ana had a cache hit from another context" in halt.reason
            halts.resume(desk.world, strategy, "olga", "looked at it")
        return new

    assert reported(first, "a")
    assert not reported(first, "a"), "the same report after a resume"
    assert not reported(first, "a", "a")
    assert reported(first, "a", "b")
    assert not reported(first, "b", "a")
    assert reported(second, "a")
    assert store.counts() == {desk.world: 3}


def test_hits_of_a_submission_are_counted_once_and_halt_nothing(database: Database) -> None:
    desk, store = Desk(database), SqlCacheHits(database)
    hits = CacheHits("run", desk.world, desk.strategies[0], ("a", "b"))
    assert store.count(hits, "ana")
    assert not store.count(hits, "ana")
    assert desk.fence_row().halted == ""
    assert store.counts() == {desk.world: 2}


def test_a_hit_of_a_strategy_that_is_halted_already_is_counted_and_keeps_the_first_reason(
    database: Database,
) -> None:
    desk, store = Desk(database), SqlCacheHits(database)
    (strategy,) = desk.strategies
    first = SqlStrategyHalts(database).halt(desk.world, strategy, "olga", "a look")
    assert store.halt(CacheHits(desk.session(), desk.world, strategy, ("a",)), "ana")
    assert desk.fence.status(desk.world).strategy_halts == (first,)
    assert store.counts() == {desk.world: 1}
