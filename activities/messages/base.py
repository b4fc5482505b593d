"""Base of the messages that name the store they are meant for."""

from qmtl_sdk.contracts.model import Model


class StoreMessage(Model):
    """A message for one store: a worker of another store refuses it."""

    store_id: str
