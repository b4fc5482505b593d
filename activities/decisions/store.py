"""Stored decisions and their inputs."""

from activities.decisions.candidate import HysteresisState
from qmtl_sdk.contracts.decisions import DecisionEnvelope
from qmtl_sdk.contracts.model import Model


class DecisionInputs(Model):
    """The inputs of a decision: evidence by number, and the hysteresis states `before` and `after` it."""

    evidence: tuple[int, ...] = ()
    before: dict[str, HysteresisState] = {}
    after: dict[str, HysteresisState] = {}


class StoredDecision(Model):
    """A decision with its number in the store."""

    seq: int
    envelope: DecisionEnvelope
