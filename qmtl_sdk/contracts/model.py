"""The base class of every contract: frozen, and strict about unknown keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A contract. Unknown keys are refused, because a misspelt key would silently become a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def json_dict(self) -> dict[str, Any]:
        """Return the model as plain JSON types."""
        return self.model_dump(mode="json")


class OfStrategy(Model):
    """A contract about one strategy. `name` is the author's."""

    strategy_id: str
    name: str = ""

    @property
    def label(self) -> str:
        """The name that a person reads: the author's, or the beginning of the id."""
        return self.name or self.strategy_id[:17]
