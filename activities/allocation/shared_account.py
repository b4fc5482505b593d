"""Whether several worlds may be netted in one account, and what its positions may come to.

It is off until an operator has configured its limits.
"""

from collections.abc import Iterable
from decimal import Decimal
from fractions import Fraction

from activities.allocation.netting import Holding, Trade, truncated
from activities.allocation.scaling import Marks
from qmtl_sdk.contracts.amounts import EXACT, plain
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.instruments import Instrument
from qmtl_sdk.contracts.rebalancing import SharedAccountLimits


def require_enabled(limits: SharedAccountLimits | None) -> SharedAccountLimits:
    """Return the limits. Raises QmtlError (E_SHARED_ACCOUNT_DISABLED) where there are none."""
    if limits is None:
        raise QmtlError(
            "E_SHARED_ACCOUNT_DISABLED",
            "netting several worlds in one account is off",
            "an operator configures max_gross_notional, max_net_notional and min_margin_headroom",
        )
    return limits


class SharedAccount:
    """The positions of an account, as trades change them."""

    def __init__(self, holdings: Iterable[Holding], marks: Marks) -> None:
        self._instruments: dict[tuple[str, str], Instrument] = {}
        self._quantities: dict[tuple[str, str], Decimal] = {}
        self._marks = dict(marks)
        for holding in holdings:
            self._add(holding.instrument, holding.quantity)

    def fill(self, trade: Trade) -> None:
        """Add what a trade orders."""
        self._marks[trade.instrument.venue, trade.instrument.symbol] = trade.mark
        self._add(trade.instrument, trade.quantity)

    def _add(self, instrument: Instrument, quantity: Decimal) -> None:
        key = (instrument.venue, instrument.symbol)
        self._instruments[key] = instrument
        self._quantities[key] = EXACT.add(self._quantities.get(key, Decimal(0)), quantity)

    def require_within(self, limits: SharedAccountLimits) -> None:
        """Raise QmtlError (E_SHARED_ACCOUNT_POLICY, with the figures) if the account is beyond a limit."""
        notionals = {
            key: Fraction(quantity) * Fraction(self._marks[key]) for key, quantity in self._quantities.items()
        }
        gross = sum(map(abs, notionals.values()), Fraction())
        net = abs(sum(notionals.values(), Fraction()))
        margin = sum(
            abs(notional) * Fraction(self._instruments[key].margin_rate)
            for key, notional in notionals.items()
        )
        headroom = 1 - margin / Fraction(limits.equity)
        within = {
            "max_gross_notional": gross <= Fraction(limits.max_gross_notional),
            "max_net_notional": net <= Fraction(limits.max_net_notional),
            "min_margin_headroom": headroom >= Fraction(limits.min_margin_headroom),
        }
        broken = [name for name, holds in within.items() if not holds]
        if broken:
            figures = {"gross_notional": gross, "net_notional": net, "margin_headroom": headroom}
            raise QmtlError(
                "E_SHARED_ACCOUNT_POLICY",
                f"the shared account would be beyond {', '.join(broken)}",
                "rebalance to less, or have an operator change the limits",
                broken=broken,
                limits=limits.json_dict(),
                **{name: format(plain(truncated(figure)), "f") for name, figure in figures.items()},
            )
