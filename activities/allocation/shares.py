"""Three ways to propose shares of worlds: given, equal risk, capped drift bands. All are pure and say why.

Equal risk gives each world a share in proportion to 1 / volatility of its own returns. Drift bands let
shares drift with the equity of the worlds, and bring one that has left its band back to the band's edge.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal, localcontext

from qmtl_sdk.contracts.allocations import WEIGHT_PLACES, ShareProposal, WorldShare, require_sum
from qmtl_sdk.contracts.amounts import plain
from qmtl_sdk.contracts.errors import QmtlError

MIN_RETURNS = 20
"""Returns below which a volatility says nothing."""

SHARE_STEP = Decimal(1).scaleb(-WEIGHT_PLACES)
"""The step of proposed shares."""

_CONTEXT = Context(prec=50)
_NOISE = Decimal(1).scaleb(-30)
_NONE = Decimal(0)


def equal_risk(
    returns: Mapping[str, Sequence[Decimal]],
    current: Mapping[str, Decimal],
    cap: Decimal = Decimal(1),
    total: Decimal = Decimal(1),
) -> ShareProposal:
    """Return shares in proportion to 1 / volatility (standard deviation, ddof 1) of each world's returns.

    `returns` are those of the worlds' ledgers, one for each day. A world with fewer than
    `MIN_RETURNS` of them, or whose returns do not vary, keeps its `current` share; the others get the
    rest of `total`. None of these is above `cap`; what it cuts goes to the others. Raises QmtlError:
    E_WEIGHT.
    """
    _require_shares(current, "current")
    names = sorted(returns.keys() | current.keys())
    with localcontext(_CONTEXT):
        volatility = {name: _volatility(returns.get(name, ())) for name in names}
        retained = {name: current.get(name, _NONE) for name in names if not volatility[name]}
        inverse = {name: 1 / value for name, value in volatility.items() if value}
        shares = _capped_shares(inverse, total - sum(retained.values(), _NONE), cap)
        proposed = {name: _down(share) for name, share in shares.items()} | retained
        explained = tuple(
            WorldShare(
                world_id=name,
                share=proposed[name],
                why=_why_risk(volatility[name], len(returns.get(name, ())), proposed[name] == cap),
            )
            for name in names
        )
    return ShareProposal(method="equal_risk", shares=explained)


@dataclass(frozen=True)
class DriftBand:
    """The share that a world is meant to have, and how far it may drift from it."""

    target: Decimal
    width: Decimal

    def edges(self, cap: Decimal) -> tuple[Decimal, Decimal]:
        """Return the lowest and the highest share, both within 0 and `cap`."""
        return min(max(self.target - self.width, _NONE), cap), min(self.target + self.width, cap)


def drift_bands(
    bands: Mapping[str, DriftBand], current: Mapping[str, Decimal], cap: Decimal = Decimal(1)
) -> ShareProposal:
    """Return the current shares, each brought back to the nearer edge of its band, and never above `cap`.

    `current` are the shares to which the worlds' equity has drifted; a world without a band keeps its own.
    Where the results add up to more than 1, each gives up in proportion to its distance from its lower edge.
    Raises QmtlError: E_WEIGHT.
    """
    _require_shares(current, "current")
    _require_shares({name: band.target for name, band in bands.items()}, "target")
    with localcontext(_CONTEXT):
        drifted = {name: current.get(name, _NONE) for name in sorted(bands.keys() | current.keys())}
        edges = {
            name: bands[name].edges(cap) if name in bands else (share, share)
            for name, share in drifted.items()
        }
        clamped = {name: min(max(drifted[name], low), high) for name, (low, high) in edges.items()}
        excess = max(sum(clamped.values(), _NONE) - 1, _NONE)
        room = {name: clamped[name] - low for name, (low, _) in edges.items()}
        total = sum(room.values(), _NONE)
        if excess > total:
            raise _refused("the lower edges of the bands add up to more than 1")
        proposed = {
            name: _down(share - (excess * room[name] / total if excess else _NONE))
            for name, share in clamped.items()
        }
    explained = tuple(
        WorldShare(world_id=name, share=share, why=_why_band(drifted[name], share, edges[name]))
        for name, share in proposed.items()
    )
    return ShareProposal(method="drift_bands", shares=explained)


def given_shares(targets: Mapping[str, Decimal], current: Mapping[str, Decimal]) -> ShareProposal:
    """Return the given shares; a world without one keeps its own. Raises QmtlError: E_WEIGHT."""
    shares = {**current, **targets}
    _require_shares(shares, "given")
    explained = tuple(
        WorldShare(world_id=name, share=share, why="given" if name in targets else "it keeps its share")
        for name, share in sorted(shares.items())
    )
    return ShareProposal(method="given", shares=explained)


def _why_risk(volatility: Decimal | None, count: int, capped: bool) -> str:
    if volatility:
        why = f"volatility {_short(volatility)} per day, its inverse {_short(1 / volatility)}"
        return f"{why}; capped" if capped else why
    lack = f"{count} returns of {MIN_RETURNS}" if count < MIN_RETURNS else "returns that do not vary"
    return f"insufficient: {lack}; it keeps its share"


def _why_band(drifted: Decimal, share: Decimal, edges: tuple[Decimal, Decimal]) -> str:
    low, high = (plain(edge) for edge in edges)
    place = "within" if low <= drifted <= high else "outside"
    moved = "kept" if share == drifted else f"brought to {share}"
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


def _require_shares(shares: Mapping[str, Decimal], what: str) -> None:
    """Raise QmtlError (E_WEIGHT) for negative shares and for those that add up to more than 1."""
    if any(share < 0 for share in shares.values()):
        raise _refused(f"a {what} share is negative")
    try:
        require_sum(shares.values(), Decimal(1), f"the worlds ({what})")
    except ValueError as error:
        raise _refused(str(error)) from error


def _refused(message: str) -> QmtlError:
    return QmtlError(
        "E_WEIGHT",
        message,
        "give shares between 0 and 1 that, with those of all other worlds, add up to at most 1",
    )


def _down(share: Decimal) -> Decimal:
    """Round down, so that shares never add up to more than before.

    First away from the last digits, in which a computed 0.75 may be 0.7499….
    """
    return plain(share.quantize(_NOISE).quantize(SHARE_STEP, rounding=ROUND_DOWN))


def _short(value: Decimal) -> Decimal:
    """Return a number as a person reads it."""
    return plain(Context(prec=6).plus(value))
