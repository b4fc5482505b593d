"""Cache hits from another context, as runners report them: a defect that is counted and halts the strategy.

Only the strategy that reports it: a report is an author's, and no author halts a world. A hit is told apart
by who reports it (a session, or the run of a submission) and its node. Reported again, it changes nothing:
after a resume the same report does not halt again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func
from sqlmodel import select

from activities.fence.state import locked_fence
from activities.fence.strategy_halts import halt_strategy
from activities.storage.database import Database
from activities.storage.tables import CacheHitRow
from activities.storage.transactions import RecordedChange, utc_now


@dataclass(frozen=True)
class CacheHits:
    """The nodes of a strategy whose cache answered from another context. `reporter`: a session or a run."""

    reporter: str
    world_id: str
    strategy_id: str
    node_ids: Sequence[str]


class SqlCacheHits:
    """Stores the reports of cache hits."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def count(self, hits: CacheHits, actor: str) -> bool:
        """Store the hits of a submission. Returns whether any was new."""
        return self._store(hits, actor, "")

    def halt(self, hits: CacheHits, actor: str) -> bool:
        """Store the hits of a running strategy, and halt it where any was new. Returns whether."""
        first, *more = hits.node_ids
        others = f" and {len(more)} more" if more else ""
        return self._store(
            hits,
            actor,
            f"the session {hits.reporter[:8]} of {actor} had a cache hit from another context: "
            f"node {first}{others}",
        )

    def counts(self) -> dict[str, int]:
        """Count the hits by world."""
        with self._database.read() as session:
            query = select(CacheHitRow.world_id, func.count()).group_by(CacheHitRow.world_id)
            return {world_id: int(count) for world_id, count in session.exec(query)}

    def _store(self, hits: CacheHits, actor: str, halted: str) -> bool:
        with self._database.write(actor) as tx:
            fence = locked_fence(tx, hits.world_id)
            new = tx.insert_new(
                [
                    CacheHitRow(
                        reporter=hits.reporter,
                        node_id=node_id,
                        world_id=hits.world_id,
                        strategy_id=hits.strategy_id,
                        actor=actor,
                        at=utc_now(),
                    )
                    for node_id in sorted(set(hits.node_ids))
                ]
            )
            if not new:
                return False
            if halted:
                halt_strategy(tx, fence, hits.strategy_id, actor, halted)
            nodes = sorted(node_id for _, node_id in new)
            subject = f"cache_hit:{hits.reporter}"
            after = {"strategy_id": hits.strategy_id, "nodes": nodes}
            tx.record(RecordedChange("world.cache_hit", hits.world_id, subject, after=after))
            return True
