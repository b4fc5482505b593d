"""Shares that a schedule proposes: pure functions of present shares, profits and returns.

1. A share drifts with the equity of its world. Of one world with 0.5 that has earned 10% since its share was
   set, the drifted share is 0.55 / 1.05 = 0.524. What no world of the schedule has of the capital stays what
   it was.
2. The method makes shares of these, or of returns, or takes those that are given.
3. Shares that differ from the present ones by more than the tolerance are worth a run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal, localcontext
from typing import assert_never

from activities.allocation.shares import SHARE_STEP, DriftBand, drift_bands, equal_risk, given_shares
from qmtl_sdk.contracts.allocations import ShareProposal
from qmtl_sdk.contracts.amounts import ZERO, exact_sum, plain
from qmtl_sdk.contracts.rebalance_schedules import ProposedShare, RebalanceScheduleBody

_CONTEXT = Context(prec=50)


@dataclass(frozen=True)
class PresentShare:
    """The share of a world, what it trades with at that share, and what it has earned since it was set.

    The method `given` reads the share alone. `account`: at which it has earned.
    """

    share: Decimal
    capital: Decimal = ZERO
    earned: Decimal = ZERO
    account: str = ""

    @property
    def equity(self) -> Decimal:
        """The share times what has become of its capital, in an inexact context; 0 where all is lost."""
        return max(self.share * (1 + self.earned / self.capital), ZERO)


def drifted_shares(present: Mapping[str, PresentShare], others: Decimal = ZERO) -> dict[str, Decimal]:
    """Return to which shares worlds have drifted, rounded down.

    d = s(1+g) / (Σ s(1+g) + 1 - Σ s), where g is what a world has earned as a part of its capital. Together
    they are at most what `others`, the shares of other worlds, leave: those do not change.
    """
    with localcontext(_CONTEXT):
        equity = {name: item.equity for name, item in present.items()}
        uninvested = 1 - sum((item.share for item in present.values()), ZERO)
        total = sum(equity.values(), ZERO) + uninvested
        if total <= 0:
            return dict.fromkeys(equity, ZERO)
        drifted = {name: value / total for name, value in equity.items()}
        room, taken = 1 - others, sum(drifted.values(), ZERO)
        scale = room / taken if taken > room else Decimal(1)
        return {
            name: plain((value * scale).quantize(SHARE_STEP, rounding=ROUND_DOWN))
            for name, value in drifted.items()
        }


def proposal(
    schedule: RebalanceScheduleBody,
    present: Mapping[str, PresentShare],
    others: Mapping[str, Decimal],
    returns: Mapping[str, Sequence[Decimal]],
) -> tuple[ProposedShare, ...]:
    """Return what a schedule proposes for its worlds, with the reasons.

    `others`: the shares of all other worlds, which keep them. `returns`: those of the schedule's worlds, for
    the method `equal_risk`. Raises QmtlError: E_WEIGHT.
    """
    shares = {name: item.share for name, item in present.items()}
    return tuple(
        ProposedShare(
            world_id=item.world_id,
            before=shares[item.world_id],
            after=item.share,
            why=item.why + _account_text(schedule, present[item.world_id]),
        )
        for item in _by_method(schedule, present, others, returns).shares
        if item.world_id in shares
    )


def _account_text(schedule: RebalanceScheduleBody, share: PresentShare) -> str:
    """Say which profit counted, at which account."""
    if schedule.method == "drift_bands":
        return f"; earned {plain(share.earned):f} at {share.account} since the share was set"
    return f"; days at {share.account}" if schedule.method == "equal_risk" else ""


def _by_method(
    schedule: RebalanceScheduleBody,
    present: Mapping[str, PresentShare],
    others: Mapping[str, Decimal],
    returns: Mapping[str, Sequence[Decimal]],
) -> ShareProposal:
    match schedule.method:
        case "equal_risk":
            current = {**others, **{name: item.share for name, item in present.items()}}
            return equal_risk(returns, current, schedule.largest, exact_sum(current.values()))
        case "given":
            return given_shares({item.world_id: item.target or ZERO for item in schedule.worlds}, others)
        case "drift_bands":
            bands = {
                item.world_id: DriftBand(item.target or ZERO, item.width or ZERO) for item in schedule.worlds
            }
            drifted = drifted_shares(present, exact_sum(others.values()))
            return drift_bands(bands, {**others, **drifted}, schedule.largest)
        case unknown:
            assert_never(unknown)


def exceeds_tolerance(proposed: Sequence[ProposedShare], tolerance: Decimal) -> bool:
    """Whether a proposed share differs from the present one by more than the tolerance."""
    return any(abs(item.after - item.before) > tolerance for item in proposed)
