"""A candidate of a judgment: a strategy's newest evidence, and its state after earlier judgments."""

from datetime import UTC, datetime
from typing import Literal

from qmtl_sdk.contracts.model import Model, OfStrategy
from qmtl_sdk.contracts.worlds import UtcTime


class Candidate(OfStrategy):
    """A strategy's newest evidence.

    `bound` orders candidates by the age of their binding: lower is older. `evidence_seq` is the number of the
    evidence, `first_seq` that of the first with the same content (`content_hash`). `sectors` are the sectors
    of its price streams. `newest_bar` is the newest close that a session of the strategy has reported,
    `interval_s` the length of a bar of its returns.
    `error` explains why evidence was rejected, in which case it has no metrics. `self_reported`: why its
    returns are the author's own statement.
    """

    bound: int
    evidence_seq: int = 0
    first_seq: int = 0
    content_hash: str = ""
    metrics: dict[str, float | None] = {}
    returns_hash: str = ""
    sectors: tuple[str, ...] = ()
    dataset_fingerprint: str = ""
    self_reported: str = ""
    data_first: UtcTime | None = None
    data_last: UtcTime | None = None
    newest_bar: UtcTime | None = None
    interval_s: int = 0
    error_code: str = ""
    error: str = ""

    @property
    def data_until(self) -> datetime | None:
        """The newest close of its data: of the evidence, or of what a session has reported since.

        A session's report counts by whole bars: another time within a bar is no advance.
        """
        bar = self.newest_bar
        if bar is not None and self.interval_s:
            bar = datetime.fromtimestamp(int(bar.timestamp()) // self.interval_s * self.interval_s, UTC)
        return max(filter(None, (self.data_last, bar)), default=None)

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

    `since` is when it became active or inactive, on the world's clock. `passes` and `failures` count pieces
    of evidence in a row: `counted_evidence` (`Candidate.first_seq`) with data until `counted_data` is the
    newest of them, and `passes_before` and `failures_before` are the counts without it.
    """

    active: bool = False
    since: UtcTime
    passes: int = 0
    failures: int = 0
    passes_before: int = 0
    failures_before: int = 0
    counted_evidence: int | None = None
    counted_data: UtcTime | None = None

    def counted(self, candidate: Candidate, passes: bool) -> "HysteresisState":
        """Return the state with the candidate's evidence counted as a pass or a failure.

        Each piece of evidence, and each advance of its data, counts once. A later judgment of the newest
        piece only replaces its result. An older piece that is submitted again counts as no pass; where it
        fails, that is the newest result.
        """
        evidence, data = self.counted_evidence, self.counted_data
        until = candidate.data_until
        before = (self.passes, self.failures)
        if evidence is not None and candidate.first_seq <= evidence and not _is_later(until, data):
            if candidate.first_seq < evidence and passes:
                return self
            before = (self.passes_before, self.failures_before)
        return self.model_copy(
            update={
                "passes": before[0] + 1 if passes else 0,
                "failures": 0 if passes else before[1] + 1,
                "passes_before": before[0],
                "failures_before": before[1],
                "counted_evidence": max(candidate.first_seq, evidence or 0),
                "counted_data": max(filter(None, (until, data)), default=None),
            }
        )


def _is_later(one: datetime | None, other: datetime | None) -> bool:
    return one is not None and (other is None or one > other)
