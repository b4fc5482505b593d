"""Edges between the domains of a world."""

from pydantic import Field

from qmtl_sdk.contracts.model import Model
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime


class EdgeOverride(Model):
    """An edge between domains that is opened or closed.

    There is one, `domain:backtest` → `domain:live`, which every live order needs. Between other domains
    nothing passes in any case.
    """

    src: PlainLine = Field(min_length=1, max_length=128)
    dst: PlainLine = Field(min_length=1, max_length=128)
    active: bool
    reason: PlainLine = Field("", max_length=500)
    updated_at: UtcTime | None = None
