"""Two ways to set the weights of worlds: equal risk, and capped drift bands. Both are pure and say why.

Equal risk gives each world a weight in proportion to 1 / volatility of its own returns. Drift bands let
weights drift with the equity of the worlds, and bring one that has left its band back to the band's edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal, localcontext

from qmtl_sdk.contracts.allocations import WEIGHT_PLACES, WeightProposal, WorldWeight, require_sum
from qmtl_sdk.contracts.amounts import plain
from qmtl_sdk.contracts.errors import QmtlError

MIN_RETURNS = 20
"""Returns below which a volatility says nothing."""

_CONTEXT = Context(prec=50)
_STEP = Decimal(1).scaleb(-WEIGHT_PLACES)
_NOISE = Decimal(1).scaleb(-30)
_NONE = Decimal(0)


def equal_risk(
    returns: Mapping[str, Sequence[Decimal]], current: Mapping[str, Decimal], cap: Decimal = Decimal(1)
) -> WeightProposal:
    """Return weights in proportion to 1 / volatility (standard deviation, ddof 1) of each world's returns.

    `returns` are those of the worlds' ledgers, per period of one length. A world with fewer than
    `MIN_RETURNS` of them, or whose returns do not vary, keeps its `current` weight; the others share the
    rest. None of these is above `cap`; what it cuts goes to the others. Raises QmtlError: E_WEIGHT.
    """
    _require_weights(current, "current")
    names = sorted(returns.keys() | current.keys())
    with localcontext(_CONTEXT):
        volatility = {name: _volatility(returns.get(name, ())) for name in names}
        retained = {name: current.get(name, _NONE) for name in names if not volatility[name]}
        inverse = {name: 1 / value for name, value in volatility.items() if value}
        shares = _capped_shares(inverse, 1 - sum(retained.values(), _NONE), cap)
        weights = {name: _down(share) for name, share in shares.items()} | retained
        explained = tuple(
            WorldWeight(
                world_id=name,
                weight=weights[name],
                why=_why_risk(volatility[name], len(returns.get(name, ())), weights[name] == cap),
            )
            for name in names
        )
    return WeightProposal(method="equal_risk", weights=explained)


@dataclass(frozen=True)
class DriftBand:
    """The weight that a world is meant to have, and how far it may drift from it."""

    target: Decimal
    width: Decimal

    def edges(self, cap: Decimal) -> tuple[Decimal, Decimal]:
        """Return the lowest and the highest weight, both within 0 and `cap`."""
        return min(max(self.target - self.width, _NONE), cap), min(self.target + self.width, cap)


def drift_bands(
    bands: Mapping[str, DriftBand], current: Mapping[str, Decimal], cap: Decimal = Decimal(1)
) -> WeightProposal:
    """Return the current weights, each brought back to the nearer edge of its band, and never above `cap`.

    `current` are the weights to which the worlds' equity has drifted; a world without a band keeps its own.
    Where the results add up to more than 1, each gives up in proportion to its distance from its lower edge.
    Raises QmtlError: E_WEIGHT.
    """
    _require_weights(current, "current")
    _require_weights({name: band.target for name, band in bands.items()}, "target")
    with localcontext(_CONTEXT):
        drifted = {name: current.get(name, _NONE) for name in sorted(bands.keys() | current.keys())}
        edges = {
            name: bands[name].edges(cap) if name in bands else (weight, weight)
            for name, weight in drifted.items()
        }
        clamped = {name: min(max(drifted[name], low), high) for name, (low, high) in edges.items()}
        excess = max(sum(clamped.values(), _NONE) - 1, _NONE)
        room = {name: clamped[name] - low for name, (low, _) in edges.items()}
        total = sum(room.values(), _NONE)
        if excess > total:
            raise _refused("the lower edges of the bands add up to more than 1")
        weights = {
            name: _down(weight - (excess * room[name] / total if excess else _NONE))
            for name, weight in clamped.items()
        }
    explained = tuple(
        WorldWeight(world_id=name, weight=weight, why=_why_band(drifted[name], weight, edges[name]))
        for name, weight in weights.items()
    )
    return WeightProposal(method="drift_bands", weights=explained)


def _why_risk(volatility: Decimal | None, count: int, capped: bool) -> str:
    if volatility:
        why = f"volatility {_short(volatility)} per period, its inverse {_short(1 / volatility)}"
        return f"{why}; capped" if capped else why
    lack = f"{count} returns of {MIN_RETURNS}" if count < MIN_RETURNS else "returns that do not vary"
    return f"insufficient: {lack}; it keeps its weight"


def _why_band(drifted: Decimal, weight: Decimal, edges: tuple[Decimal, Decimal]) -> str:
    low, high = (plain(edge) for edge in edges)
    place = "within" if low <= drifted <= high else "outside"
    moved = "kept" if weight == drifted else f"brought to {weight}"
    return f"{plain(drifted)} is {place} its band {low} to {high}: {moved}"


def _volatility(returns: Sequence[Decimal]) -> Decimal | None:
    """Return the standard deviation (ddof 1) of returns; None where there are too few or they do not vary."""
    if len(returns) < MIN_RETURNS:
        return None
    mean = sum(returns, _NONE) / len(returns)
    return (sum(((item - mean) ** 2 for item in returns), _NONE) / (len(returns) - 1)).sqrt() or None


def _capped_shares(inverse: Mapping[str, Decimal], budget: Decimal, cap: Decimal) -> dict[str, Decimal]:
    """Divide a budget in proportion. What the cap cuts off one is divided among the others."""
    capped: dict[str, Decimal] = {}
    while True:
        others = {name: value for name, value in inverse.items() if name not in capped}
        left = budget - sum(capped.values(), _NONE)
        total = sum(others.values(), _NONE)
        shares = {name: left * value / total for name, value in others.items()}
        above = [name for name, share in shares.items() if share > cap]
        if not above:
            return shares | capped
        capped.update(dict.fromkeys(above, cap))


def _require_weights(weights: Mapping[str, Decimal], what: str) -> None:
    """Raise QmtlError (E_WEIGHT) for negative weights and for those that add up to more than 1."""
    if any(weight < 0 for weight in weights.values()):
        raise _refused(f"a {what} weight is negative")
    try:
        require_sum(weights.values(), Decimal(1), f"the worlds ({what})")
    except ValueError as error:
        raise _refused(str(error)) from error


def _refused(message: str) -> QmtlError:
    return QmtlError("E_WEIGHT", message, "give weights between 0 and 1 that add up to at most 1")


def _down(weight: Decimal) -> Decimal:
    """Round down, so that weights never add up to more than before.

    First away from the last digits, in which a computed 0.75 may be 0.7499….
    """
    return plain(weight.quantize(_NOISE).quantize(_STEP, rounding=ROUND_DOWN))


def _short(value: Decimal) -> Decimal:
    """Return a number as a person reads it."""
    return plain(Context(prec=6).plus(value))
