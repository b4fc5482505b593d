"""A candidate of a judgment: a strategy's newest evidence, and its state after earlier judgments."""

from typing import Literal

from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime


class Candidate(OfStrategy):
    """A strategy's newest evidence.

    `bound` orders candidates by the age of their binding: lower is older. `sectors` are the sectors of its
    price streams. `error` explains why evidence was rejected, in which case it has no metrics.
    """

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
    def main_side(self) -> Literal["long", "short"]:
        """The side with the larger gross exposure."""
        long = self.metrics.get("gross_long") or 0.0
        short = self.metrics.get("gross_short") or 0.0
        return "short" if short > long else "long"

    @property
    def side(self) -> Literal["long", "short", "both"]:
        """The side that it trades on, or `both`."""
        has_long = bool(self.metrics.get("gross_long"))
        has_short = bool(self.metrics.get("gross_short"))
        if has_long == has_short:
            return "both"
        return "long" if has_long else "short"


class HysteresisState(Model):
    """What hysteresis remembers of a strategy.

    `since` is when it became active or inactive, on the world's clock. `passes` and `failures` count
    judgments in a row.
    """

    active: bool = False
    since: UtcTime
    passes: int = 0
    failures: int = 0
