"""Bases of the messages of workflows."""

from pydantic import ConfigDict

from qmtl_sdk.contracts.model import Model


class HistoryMessage(Model):
    """A message in the history of a workflow that outlives releases.

    A key that this code does not know was written by other code, and is ignored: refusing it would leave the
    run standing for ever.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class StoreMessage(HistoryMessage):
    """A message for one store: a worker of another store refuses it."""

    store_id: str
