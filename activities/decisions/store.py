"""Stored decisions and their inputs."""

from activities.decisions.candidate import HysteresisState
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.worlds import UtcTime


class DecisionInputs(Model):
    """The inputs of a decision: evidence by number, and the hysteresis states `before` and `after` it.

    `newest_bars`: the newest bar that a session of a strategy had reported, by strategy_id.
    """

    evidence: tuple[int, ...] = ()
    newest_bars: dict[str, UtcTime] = {}
    before: dict[str, HysteresisState] = {}
    after: dict[str, HysteresisState] = {}


class StoredDecision(Model):
    """A decision with its number in the store."""

    seq: int
    envelope: DecisionEnvelope
