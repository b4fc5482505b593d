"""Stored decisions and what they were made from."""

from activities.decisions.candidate import HysteresisState
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.model import Model


class DecisionInputs(Model):
    """What a decision was made from: evidence by number, and the hysteresis states `before` and `after` it."""

    evidence: tuple[int, ...] = ()
    before: dict[str, HysteresisState] = {}
    after: dict[str, HysteresisState] = {}


class StoredDecision(Model):
    """A decision with its number in the store."""

    seq: int
    envelope: DecisionEnvelope
