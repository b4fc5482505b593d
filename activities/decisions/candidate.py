"""What a judgment knows of a strategy: its newest evidence, and what is remembered of the judgments before."""

from typing import Literal

from qmtl_sdk.contracts.decisions import StrategyDecision, Violation
from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime


class Candidate(OfStrategy):
    """A strategy's newest evidence. `error` says why it has no metrics; `bound` is its binding's age, lower is older; `sectors` are those of its price streams."""

    bound: int
    evidence_seq: int = 0
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    sectors: tuple[str, ...] = ()
    dataset_fingerprint: str = ""
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    error_code: str = ""
    error: str = ""

    @property
    def side(self) -> Literal["long", "short"]:
        """What it mostly does; `holds` says whether it does both."""
        return (
            "short"
            if (self.metrics.get("gross_short") or 0.0) > (self.metrics.get("gross_long") or 0.0)
            else "long"
        )

    @property
    def holds(self) -> Literal["long", "short", "both"]:
        long, short = (bool(self.metrics.get(name)) for name in ("gross_long", "gross_short"))
        return "both" if long == short else "long" if long else "short"

    def left_out(
        self, score: float | None, violations: list[Violation], rank: int | None = None
    ) -> StrategyDecision:
        return StrategyDecision(
            strategy_id=self.strategy_id,
            name=self.name,
            active=False,
            rank=rank,
            score=score,
            violations=tuple(violations),
        )


class HysteresisState(Model):
    """What hysteresis remembers: whether the strategy is in, since when on the world's clock, and how often in a row it has passed or failed."""

    active: bool = False
    since: UtcTime
    passes: int = 0
    failures: int = 0


class Scored(Model):
    """A candidate that has passed the gates."""

    candidate: Candidate
    score: float
