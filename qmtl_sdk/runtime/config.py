"""The configuration: defaults, then `qmtl.yml`, then `QMTL_…` variables. An unknown key is an error.

The error names the nearest known key. A nested key's variable joins the names with two underscores:
`gateway.database_dsn` is `QMTL_GATEWAY__DATABASE_DSN`. The file is `qmtl.yml` in the current folder, or the
one that `QMTL_CONFIG` names.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from qmtl_sdk.contracts.errors import QmtlError, nearest

# The variable that names the configuration file.
ENV = "QMTL_CONFIG"

# The configuration file in the current folder.
FILE = "qmtl.yml"

# The start of the name of every variable that sets a key.
PREFIX = "QMTL_"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewaySettings(_Section):
    url: str | None = Field(
        None, description="the Gateway's address for Runner and qmtl; none: the embedded stack"
    )
    host: str = Field("127.0.0.1", description="where the Gateway listens")
    port: int = Field(0, ge=0, le=65535, description="0: a free one")
    database_backend: Literal["sqlite", "postgres"] = "sqlite"
    database_dsn: str | None = Field(
        None, description="sqlite:///FILE or postgresql://…; none: a file in home"
    )
    max_body_bytes: int = Field(1_048_576, gt=0, description="largest request body, artifacts excepted")
    max_artifact_bytes: int = Field(67_108_864, gt=0)
    lease_heartbeat_s: float = Field(
        10.0, gt=0, description="seconds without a heartbeat after which a runner loses its lease"
    )
    session_lease_s: float = Field(
        15.0, gt=0, description="seconds without a heartbeat after which a running strategy loses its session"
    )
    token: str | None = Field(
        None,
        description="the bearer token of Runner and qmtl; none: the embedded stack's",
    )
    rate_per_s: float = Field(
        500.0, gt=0, description="requests of one caller a second; twice as many at once"
    )
    max_sockets: int = Field(50, gt=0, description="open streams of one caller")


class EventsSettings(_Section):
    bus: str = Field("sqlite", description="the ControlBus backend: a built-in one, or a package's")
    bus_options: dict[str, str] = Field({}, description="options of a package's bus")
    keep: int = Field(
        100_000, gt=0, description="events retained in a topic; an older position gets a snapshot"
    )
    heartbeat_s: float = Field(2.0, gt=0, description="seconds between heartbeats of a stream")
    slow_reader_s: float = Field(
        10.0, gt=0, description="seconds without progress after which a reader is dropped"
    )
    token_s: float = Field(
        600.0, gt=0, description="how long a stream's token is good; it is refreshed on the open socket"
    )


class OrdersSettings(_Section):
    dryrun_broker: str = Field(
        "paper", description="the broker of dryrun orders: a built-in one, or a package's"
    )
    live_broker: str = Field("paper", description="the broker of live orders: a built-in one, or a package's")
    broker_options: dict[str, str] = Field({}, description="options of a package's broker")
    paper_fill_delay_s: float = Field(
        0.0, ge=0, description="how long after its acceptance the paper venue fills an order"
    )


class TemporalSettings(_Section):
    address: str | None = Field(
        None, description="HOST:PORT of a Temporal server; none: a local one that qmtl up starts"
    )
    namespace: str = "default"
    ui_url: str | None = Field(None, description="where its web page is; a local server's is known")
    api_key: str | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    binary: Path | None = Field(None, description="the temporal executable for a local server")


class CacheSettings(_Section):
    dir: Path | None = Field(None, description="computed outputs; none: a folder in home")


class Settings(BaseSettings):
    """The whole configuration. `settings()` builds it and reports a fault as one QmtlError."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    profile: Literal["dev", "prod"] = "dev"
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("qmtl")),
        description="data of the embedded stack",
    )
    tools_dir: Path = Field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("qmtl")),
        description="servers that were installed for it",
    )
    gateway: GatewaySettings = GatewaySettings()
    events: EventsSettings = EventsSettings()
    orders: OrdersSettings = OrdersSettings()
    temporal: TemporalSettings = TemporalSettings()
    cache: CacheSettings = CacheSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, config_file())

    @property
    def database_dsn(self) -> str:
        return self.gateway.database_dsn or f"sqlite:///{self.home / 'qmtl.db'}"

    @property
    def cache_dir(self) -> Path:
        return self.cache.dir or self.home / "cache"

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

    def local_token_path(self, role: str = "operator") -> Path:
        """Where the embedded stack leaves a token for the person who started it."""
        return self.home / "tokens" / role

    @property
    def token(self) -> str | None:
        """The bearer token of this process."""
        if self.gateway.token:
            return self.gateway.token
        try:
            return self.local_token_path().read_text().strip()
        except OSError:  # another user's stack, or none: the Gateway then refuses the request
            return None

    def missing_for_profile(self) -> list[str]:
        """List every setting that the profile requires and that is missing."""
        if self.profile == "dev":
            return []
        required = {
            "gateway.database_backend: postgres": self.gateway.database_backend == "postgres",
            "gateway.database_dsn": self.gateway.database_dsn,
            "temporal.address": self.temporal.address,
        }
        return [name for name, present in required.items() if not present]

    def require_profile(self) -> None:
        """Check the profile. Raises QmtlError: E_CONFIG, listing every missing setting."""
        missing = self.missing_for_profile()
        if missing:
            raise QmtlError(
                "E_CONFIG",
                f"profile prod lacks {', '.join(missing)}",
                f"set them in {FILE} or as {PREFIX}… variables",
                missing=missing,
            )
        backend, dsn = self.gateway.database_backend, self.gateway.database_dsn or "sqlite:"
        if (backend == "postgres") != dsn.startswith("postgres"):
            raise QmtlError(
                "E_CONFIG",
                f"gateway.database_backend is {backend} and gateway.database_dsn names another database",
                "make them agree",
            )


def config_file() -> Path | None:
    """Return the configuration file in force, or None."""
    named = os.environ.get(ENV)
    path = Path(named) if named else Path(FILE)
    if named and not path.exists():
        raise QmtlError(
            "E_CONFIG", f"{ENV} names {named}, which does not exist", "mend the variable, or write the file"
        )
    return path if path.exists() else None


def load(**overrides: Any) -> Settings:
    """Read the configuration. Raises QmtlError: E_CONFIG where a key or value is invalid."""
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise _fault(error) from error
    except yaml.YAMLError as error:
        raise QmtlError(
            "E_CONFIG",
            f"{config_file()} is not YAML: {' '.join(str(error).split())}",
            "mend the text at that place",
        ) from error


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the configuration of this process, read once."""
    return load()


def explain() -> list[tuple[str, str, str]]:
    """List every key with its value and the value's origin. Secrets are masked."""
    current, path = load(), config_file()
    written = yaml.safe_load(path.read_text()) or {} if path else {}
    rows = []
    for name, value in _leaves(current.model_dump(mode="json")):
        parts = name.split(".")
        variable = PREFIX + "__".join(parts).upper()
        inner: Any = written
        for part in parts:
            inner = inner.get(part) if isinstance(inner, dict) else None
        origin = "default" if inner is None else str(path)
        if variable in os.environ:
            origin = variable
        shown = "" if value is None else str(value)
        if value and parts[-1] in ("api_key", "token"):
            shown = "***"
        rows.append((name, shown, origin))
    return rows


def _leaves(body: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in body.items():
        rows += _leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _fault(error: ValidationError) -> QmtlError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        known = [name for name, _ in _leaves(Settings.model_construct().model_dump(mode="json"))] + list(
            Settings.model_fields
        )
        return QmtlError(
            "E_CONFIG",
            f"{where} is not a known key{nearest(where, known)}",
            "qmtl config show lists them all",
        )
    return QmtlError("E_CONFIG", f"{where}: {first['msg']}", "mend it in qmtl.yml or in its QMTL_… variable")
