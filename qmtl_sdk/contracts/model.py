"""The one base of every contract: frozen, and strict about unknown keys."""

from typing import Any

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A contract between two parts. Unknown keys are refused, because a misspelt key is a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def json_dict(self) -> dict[str, Any]:
        """The model as plain JSON types."""
        return self.model_dump(mode="json")


class OfStrategy(Model):
    """Something about one strategy. `name` is what its author calls it."""

    strategy_id: str
    name: str = ""

    @property
    def label(self) -> str:
        """What a person calls the strategy; of one without a name, the beginning of its id."""
        return self.name or self.strategy_id[:17]
