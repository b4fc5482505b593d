"""The settings of orders: brokers, their accounts, and limits of time."""

from collections.abc import Mapping

from pydantic import Field, model_validator

from qmtl_sdk.contracts.domains import Domain
from qmtl_sdk.contracts.fills import Account
from qmtl_sdk.contracts.position_limits import TotalLimits
from qmtl_sdk.contracts.registry import Options
from qmtl_sdk.runtime import config

Accounts = Mapping[Domain, str]
"""The account that holds the positions of each domain that trades."""


class OrdersSettings(config.Section):
    dryrun_broker: str = Field(
        "paper", description="the broker of dryrun orders: a built-in one, or a package's"
    )
    live_broker: str = Field("paper", description="the broker of live orders: a built-in one, or a package's")
    dryrun_account: Account = Field(
        "paper", description="the account that fills of dryrun orders are booked to"
    )
    live_account: Account = Field(
        "paper-live", description="the account that fills of live orders are booked to"
    )
    broker_options: Options = Field({}, description="options of a package's broker")
    send_within_s: float = Field(
        300.0, gt=0, le=86_400, description="an accepted order that was not sent by then expires"
    )
    reconcile_every_s: float = Field(
        60.0, gt=0, le=86_400, description="seconds between comparisons of brokers' accounts with the ledger"
    )
    paper_fill_delay_s: float = Field(
        0.0, ge=0, description="how long after its acceptance the paper venue fills an order"
    )
    account_limits: dict[Account, TotalLimits] = Field(
        {}, description="limits on all positions of an account, of all worlds together"
    )
    no_router_after_s: float = Field(
        20.0, gt=0, description="seconds without a working order router after which live orders are refused"
    )

    @model_validator(mode="after")
    def _accounts_differ(self) -> "OrdersSettings":
        if self.dryrun_account == self.live_account:
            raise ValueError("dryrun_account and live_account are one: simulated fills would count as real")
        return self

    @property
    def accounts(self) -> Accounts:
        """The account of each domain that trades."""
        return {domain: self.account_of(domain) for domain in (Domain.DRYRUN, Domain.LIVE)}

    @property
    def brokered(self) -> frozenset[Domain]:
        """The domains whose orders reach another broker than the simulated one."""
        names = {Domain.DRYRUN: self.dryrun_broker, Domain.LIVE: self.live_broker}
        return frozenset(domain for domain, name in names.items() if name != "paper")

    def account_of(self, domain: Domain) -> str:
        """Return the account that holds the positions of a domain."""
        return self.live_account if domain is Domain.LIVE else self.dryrun_account


DEFAULT_ACCOUNTS: Accounts = OrdersSettings().accounts
"""The accounts where a configuration names no others."""
