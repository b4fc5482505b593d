"""What a rebalancing is planned from: changes of allocations, positions, rules and limits.

One model serves HTTP, workflow and command. Its lists are sorted and its numbers written in one way, so that
requests which mean the same are equal, and so are their hashes.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from qmtl_sdk.contracts.allocations import (
    MAX_WORLDS,
    AccountLimits,
    AllocationChange,
    StrategyId,
    require_sum,
)
from qmtl_sdk.contracts.amounts import Amount, Limit, SignedAmount, plain
from qmtl_sdk.contracts.applies import RunId
from qmtl_sdk.contracts.canonical import hash_of
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import InstrumentConstraints, Instruments, Symbol, Venue
from qmtl_sdk.contracts.model import Model, sort_by
from qmtl_sdk.contracts.texts import PlainLine
from qmtl_sdk.contracts.worlds import UtcTime, WorldId

MAX_POSITIONS = 200_000
"""Positions of a request."""

MAX_LABELS = 16
"""Labels of a rebalance intent."""

RebalanceMode = Literal["scaling", "overlay", "hybrid"]
"""Whether the positions are scaled, an overlay instrument is traded instead, or first this and then that."""

RebalanceScope = Literal["world", "strategy", "global"]
"""Over what orders are netted: a world's strategies, nothing, or all worlds (one shared account)."""

_Share = Annotated[Decimal, Field(ge=0, le=1, decimal_places=12), AfterValidator(plain)]
_Label = Annotated[PlainLine, Field(min_length=1, max_length=64)]


class PositionSlice(Model):
    """What a strategy holds of an instrument (negative: short), and the price at which it is valued."""

    world_id: WorldId
    strategy_id: StrategyId
    venue: Venue = ""
    symbol: Symbol
    quantity: SignedAmount
    mark: Amount

    @property
    def key(self) -> tuple[str, str, str, str]:
        """World, strategy, venue and symbol."""
        return self.world_id, self.strategy_id, self.venue, self.symbol


class Overlay(Model):
    """The instrument that stands in for each world's positions, and the price of each."""

    instrument_by_world: dict[WorldId, Symbol] = Field({}, max_length=MAX_WORLDS)
    price_by_symbol: dict[Symbol, Amount] = Field({}, max_length=MAX_WORLDS)
    venue_by_symbol: dict[Symbol, Venue] = Field({}, max_length=MAX_WORLDS)


class SharedAccountLimits(Model):
    """Limits on the positions of an account in which several worlds are netted, after the rebalancing.

    `min_margin_headroom`: the share of `equity` that positions must leave free.
    """

    max_gross_notional: Limit
    max_net_notional: Limit
    min_margin_headroom: _Share
    equity: Amount


class RebalanceIntent(Model):
    """Why the caller rebalances; the answer repeats it."""

    reason: PlainLine = Field(min_length=1, max_length=500)
    labels: dict[_Label, _Label] = Field({}, max_length=MAX_LABELS)


_Changes = Annotated[
    tuple[AllocationChange, ...],
    Field(min_length=1, max_length=MAX_WORLDS),
    sort_by(lambda item: item.world_id),
]
_Positions = Annotated[
    tuple[PositionSlice, ...], Field(max_length=MAX_POSITIONS), sort_by(lambda item: item.key)
]


class MultiWorldRebalanceRequest(Model):
    """A change of allocations in one or several worlds, and everything that its plan depends on.

    `allocations_etag`: of the allocations before; refused where they have changed since. `limits` hold for
    all orders together. The scope `global` needs `shared_account`, and takes no limits of single worlds; the
    modes `overlay` and `hybrid` need `overlay`. What would have no effect is refused.
    """

    schema_version: Literal[1, 2] = 1
    run_id: RunId | None = None
    rebalance_intent: RebalanceIntent | None = None
    mode: RebalanceMode = "scaling"
    scope: RebalanceScope = "world"
    worlds: _Changes
    positions: _Positions = ()
    instruments: InstrumentConstraints = InstrumentConstraints()
    overlay: Overlay | None = None
    limits: AccountLimits = AccountLimits()
    shared_account: SharedAccountLimits | None = None
    allocations_etag: PlainLine = Field("", max_length=128)
    as_of: UtcTime | None = Field(None, description="of the marks")

    @model_validator(mode="after")
    def _worlds_share_the_capital(self) -> Self:
        if len({item.world_id for item in self.worlds}) < len(self.worlds):
            raise ValueError("a world is named twice")
        require_sum((item.before for item in self.worlds), Decimal(1), "the worlds before")
        require_sum((item.after for item in self.worlds), Decimal(1), "the worlds after")
        return self

    @model_validator(mode="after")
    def _positions_are_unique(self) -> Self:
        instruments = Instruments(self.instruments)
        given: dict[tuple[str, str, str, str], str] = {}
        for item in self.positions:
            symbol = instruments.symbol(item.venue, item.symbol)
            key = (item.world_id, item.strategy_id, item.venue, symbol)
            if key in given:
                names = "" if given[key] == item.symbol else f", as {given[key]} and as {item.symbol}"
                raise ValueError(f"position {' '.join(filter(None, key))} is given twice{names}")
            given[key] = item.symbol
        return self

    @model_validator(mode="after")
    def _intent_needs_schema_2(self) -> Self:
        if self.rebalance_intent is not None and self.schema_version < 2:
            raise ValueError("rebalance_intent needs schema_version 2")
        return self

    @model_validator(mode="after")
    def _has_nothing_without_effect(self) -> Self:
        if self.overlay is not None and self.mode == "scaling":
            raise ValueError(
                "overlay has no effect in the mode scaling: choose overlay or hybrid, or leave it out"
            )
        if self.shared_account is not None and self.scope != "global":
            raise ValueError(
                f"shared_account has no effect in the scope {self.scope}: "
                "choose the scope global, or leave it out"
            )
        limited = [item.world_id for item in self.worlds if item.limits != AccountLimits()]
        if limited and self.scope == "global":
            raise ValueError(
                f"limits of the world {limited[0]} have no effect in the scope global, where worlds share "
                "one account: give limits of the request, or choose the scope world"
            )
        return self

    @property
    def content_hash(self) -> str:
        """The hash of the whole request but its run id: the same run id stands for the same content."""
        return hash_of(self.model_dump(mode="json", exclude={"run_id"}))

    @property
    def etag(self) -> str:
        """The hash of what must not change between planning and execution.

        Marks, prices, cash and equity are left out: they move all the time.
        """
        return hash_of(
            {
                "worlds": [
                    item.model_dump(mode="json", exclude={"limits": {"cash"}}) for item in self.worlds
                ],
                "max_turnover": self.limits.json_dict()["max_turnover"],
                "shared_account": self.shared_account
                and self.shared_account.model_dump(mode="json", exclude={"equity"}),
                "positions": [[*item.key, str(item.quantity)] for item in self.positions],
                "overlay": self.overlay and self.overlay.model_dump(mode="json", exclude={"price_by_symbol"}),
                **self._dump({"mode", "scope", "instruments", "allocations_etag"}),
            }
        )

    def require_same(self, stored_hash: str) -> None:
        """Raise QmtlError (E_RUN_ID_REUSED) unless this is the request that was stored under its run id."""
        if self.content_hash != stored_hash:
            raise QmtlError(
                "E_RUN_ID_REUSED",
                f"run id {self.run_id!r} is that of another rebalancing",
                "choose another run id, or send what was sent before",
                stored=stored_hash,
                given=self.content_hash,
            )

    def require_alpha_metrics(self) -> None:
        """Raise QmtlError (E_ALPHA_METRICS_REQUIRED) for a schema without alpha metrics."""
        if self.schema_version < 2:
            raise QmtlError(
                "E_ALPHA_METRICS_REQUIRED",
                "alpha metrics are required here, and schema_version 1 has none",
                "send schema_version 2",
                schema_version=self.schema_version,
            )

    def _dump(self, names: set[str]) -> dict[str, Any]:
        """Return some fields as JSON types. (Any: JSON.)"""
        return self.model_dump(mode="json", include=names)
