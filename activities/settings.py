"""The services' settings: the SDK's, and those that only services use.

One `qmtl.yml` and one set of variables hold both; `qmtl_sdk.runtime.config` reads them. The SDK does not
import this package. It finds `Settings` through the entry point `services` of the group `qmtl.settings`,
which `pyproject.toml` declares, and checks every key with it.
"""

import getpass
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, model_validator

from activities.order_settings import OrdersSettings
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.registry import Options
from qmtl_sdk.runtime import config

STARTED_IN = "QMTL_STARTED_IN"
"""The variable with the folder in which the embedded stack was started. Its processes run in another one."""

MAX_STREAM_S = 86_400
"""The longest time for which a stream's token is good, whatever is configured."""


class GatewaySettings(config.GatewaySettings):
    host: str = Field("127.0.0.1", description="where the Gateway listens")
    port: int = Field(0, ge=0, le=65535, description="0: a free one")
    database_backend: Literal["sqlite", "postgres"] = Field(
        "sqlite", description="the kind of database that database_dsn names"
    )
    database_dsn: str | None = Field(
        None, description="sqlite:///FILE or postgresql://…; none: a file in home"
    )
    max_body_bytes: int = Field(1_048_576, gt=0, description="largest request body, artifacts excepted")
    max_artifact_bytes: int = Field(67_108_864, gt=0, description="largest artifact, such as returns")
    lease_heartbeat_s: float = Field(
        10.0, gt=0, description="seconds without a heartbeat after which a runner loses its lease"
    )
    session_lease_s: float = Field(
        15.0, gt=0, description="seconds without a heartbeat after which a running strategy loses its session"
    )
    rate_per_s: float = Field(
        500.0, gt=0, description="requests of one caller a second; twice as many at once"
    )
    costly_per_s: float = Field(
        0.5, gt=0, description="requests of one caller a second that take much processor time: policy replays"
    )
    max_sockets: int = Field(50, gt=0, description="open streams, and requests that wait, of one caller")


class EventsSettings(config.Section):
    bus: str = Field("sqlite", description="the ControlBus backend: a built-in one, or a package's")
    bus_options: Options = Field({}, description="options of a package's bus")
    keep: int = Field(
        100_000, gt=0, description="events retained in a topic; an older position gets a snapshot"
    )
    heartbeat_s: float = Field(2.0, gt=0, description="seconds between heartbeats of a stream")
    slow_reader_s: float = Field(
        10.0, gt=0, description="seconds without progress after which a reader is dropped"
    )
    token_s: float = Field(
        600.0,
        gt=0,
        le=MAX_STREAM_S,
        description="how long a stream's token is good; it is refreshed on the open socket",
    )


class TemporalSettings(config.Section):
    address: str | None = Field(
        None, description="HOST:PORT of a Temporal server; none: a local one that qmtl up starts"
    )
    namespace: str = Field("default", description="the namespace on that server")
    ui_url: str | None = Field(None, description="where its web page is; a local server's is known")
    api_key: str | None = Field(None, description="the key that the server requires; none: without one")
    tls_cert: Path | None = Field(None, description="certificate with which to show who connects")
    tls_key: Path | None = Field(None, description="the private key of tls_cert")
    binary: Path | None = Field(None, description="the temporal executable for a local server")
    history_limit: int | None = Field(
        None,
        ge=10,
        description="events of a run after which a local server suggests to continue as new;"
        " none: the server's default of 4096",
    )


def is_private(url: str) -> bool:
    """Return whether what is read from an address comes from its owner: by https, or from this host."""
    address = urlsplit(url)
    return address.scheme == "https" or (
        address.scheme == "http" and address.hostname in ("127.0.0.1", "::1", "localhost")
    )


class DataSettings(config.Section):
    roots: tuple[Path, ...] | None = Field(
        None,
        description="folders under which the services read the files of worlds; none: with the profile dev, "
        "the home folder of whoever starts the stack and the folder in which it is started",
    )


# The least number of days that records of the past are kept in their tables.
_LEAST_DAYS = 30


class RetentionSettings(config.Section):
    """For how many days rows are kept in their tables. Older ones are archived (docs/operations.md)."""

    orders_days: int = Field(400, ge=_LEAST_DAYS, description="the order log")
    audit_days: int = Field(400, ge=_LEAST_DAYS, description="the audit trail")
    submissions_days: int = Field(400, ge=_LEAST_DAYS, description="submissions with evidence and outcome")
    decisions_days: int = Field(90, ge=_LEAST_DAYS, description="decisions with their inputs")
    applies_days: int = Field(
        400, ge=_LEAST_DAYS, description="applies, rebalancings, rule changes and approvals"
    )
    sessions_days: int = Field(400, ge=_LEAST_DAYS, description="sessions of running strategies")
    events_days: int = Field(
        14, ge=1, description="published rows of the outbox; the bus has its own limit, events.keep"
    )
    revoked_tokens_days: int = Field(
        30,
        ge=2 * MAX_STREAM_S // 86_400,  # a stream may outlive its token, and clocks differ
        description="revoked tokens, after their end",
    )

    @model_validator(mode="after")
    def _evidence_outlives_decisions(self) -> "RetentionSettings":
        if self.submissions_days < self.decisions_days:
            raise ValueError("submissions_days is less than decisions_days, and decisions rest on evidence")
        return self


class RebalancingSettings(config.Section):
    alpha_metrics_required: bool = Field(
        False, description="refuse requests of schema_version 1, which get no alpha metrics"
    )


class OidcSettings(config.Section):
    """An OpenID Connect identity provider whose tokens the Gateway accepts."""

    issuer: str = Field("", description="its URL, as in `iss` of its tokens; empty: none")
    audience: str = Field("", description="what its tokens for QMTL have as `aud`")
    subject_claim: str = Field("sub", min_length=1, description="the claim with the name of the principal")
    roles_claim: str = Field(
        "groups", min_length=1, description="the claim with the person's groups or roles"
    )
    roles: dict[str, dict[str, Role]] = Field(
        {}, description="for each value of that claim, the role by world (`*`: every world)"
    )

    @model_validator(mode="after")
    def _complete(self) -> "OidcSettings":
        if self.issuer and not (self.audience and self.roles):
            raise ValueError("an issuer needs audience and roles as well")
        if self.issuer and not is_private(self.issuer):
            raise ValueError(f"{self.issuer!r} is no https address, nor one of this host")
        return self


class AuthSettings(config.Section):
    """Who may call the Gateway besides the holders of its own tokens."""

    oidc: OidcSettings = OidcSettings()


# What is a file of one host, whatever is configured.
_LOCAL_FILES = (
    "queues that hosts share (no backend yet)",
    "artifacts that hosts share (no backend yet)",
    "signing keys that hosts share (no backend yet)",
)


class Settings(config.Settings):
    """Every key of the configuration."""

    tools_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("qmtl")),
        description="servers that were installed for it",
    )
    gateway: GatewaySettings = GatewaySettings()
    auth: AuthSettings = AuthSettings()
    data: DataSettings = DataSettings()
    events: EventsSettings = EventsSettings()
    orders: OrdersSettings = OrdersSettings()
    rebalancing: RebalancingSettings = RebalancingSettings()
    retention: RetentionSettings = RetentionSettings()
    temporal: TemporalSettings = TemporalSettings()

    @property
    def database_dsn(self) -> str:
        return self.gateway.database_dsn or f"sqlite:///{self.home / 'qmtl.db'}"

    @property
    def data_roots(self) -> tuple[Path, ...]:
        """The folders under which the services read the files of worlds."""
        if self.data.roots is not None:
            return self.data.roots
        started_in = Path(os.environ.get(STARTED_IN, os.getcwd()))
        return (Path.home(), started_in) if self.profile == "dev" else ()

    @property
    def artifact_dir(self) -> Path:
        return self.home / "artifacts"

    @property
    def bus_path(self) -> Path:
        return self.home / "bus.db"

    @property
    def queues_path(self) -> Path:
        return self.home / "queues.db"

    @property
    def keys_path(self) -> Path:
        """The signing keys of this installation's Gateways."""
        return self.home / "keys.json"

    def missing_for_profile(self) -> list[str]:
        """List every setting that the profile requires and that is missing.

        Hosts share nothing that is a local file, so those stop the profile prod too: queues, artifacts and
        signing keys have no other backend yet.
        """
        if self.profile == "dev":
            return []
        required = {
            "gateway.database_backend: postgres": self.gateway.database_backend == "postgres",
            "gateway.database_dsn": self.gateway.database_dsn,
            "temporal.address": self.temporal.address,
            "events.bus: one that hosts share": self.events.bus != "sqlite",
            **dict.fromkeys(_LOCAL_FILES, False),
        }
        return [name for name, present in required.items() if not present]

    def require_profile(self) -> None:
        """Check the profile. Raises QmtlError: E_CONFIG, listing every missing setting."""
        missing = self.missing_for_profile()
        if missing:
            raise QmtlError(
                "E_CONFIG",
                f"profile prod lacks {', '.join(missing)}",
                f"set them in {config.FILE} or as {config.PREFIX}… variables; where a part has no backend "
                "yet, use the profile dev on one host (docs/operations.md)",
                missing=missing,
            )
        backend, dsn = self.gateway.database_backend, self.gateway.database_dsn or "sqlite:"
        if (backend == "postgres") != dsn.startswith("postgres"):
            raise QmtlError(
                "E_CONFIG",
                f"gateway.database_backend is {backend} and gateway.database_dsn names another database",
                "set gateway.database_backend: postgres, or remove gateway.database_dsn"
                if backend == "sqlite"
                else "set gateway.database_dsn to its postgresql://… address, or remove the backend",
            )


def load() -> Settings:
    """Read the configuration. Raises QmtlError: E_CONFIG where a key or value is invalid."""
    return config.read(Settings)


def local_user() -> str:
    """Return the name of the user of this machine, or its number where it has no name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        return f"uid:{os.getuid()}"


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the configuration of this process, read once."""
    return load()
