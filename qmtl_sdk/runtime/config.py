"""The SDK's settings: defaults, then `qmtl.yml`, then `QMTL_…` variables. An unknown key is an error.

The error names the nearest known key. A nested key's variable joins the names with two underscores:
`gateway.database_dsn` is `QMTL_GATEWAY__DATABASE_DSN`. The file is `qmtl.yml` in the current folder, or the
one that `QMTL_CONFIG` names.

The file and the variables also hold the services' settings, which are fields of a subclass of `Settings`. An
entry point of the group `qmtl.settings` names the subclass, and `load` uses it where it is installed. So a
mistake in a service's key is an error for Runner, too.
"""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import platformdirs
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.registry import Registry

# The variable that names the configuration file.
ENV = "QMTL_CONFIG"

# The configuration file in the current folder.
FILE = "qmtl.yml"

# The password in a DSN or URL: between the user's name and the last @ before the host.
_PASSWORD = re.compile(r"(://[^/?#@:]*:).*@")

# The characters of an address. Others are cut off or encoded, by each library in its own way.
_ADDRESS_CHARACTERS = re.compile(r"[!-~]+")

# The start of the name of every variable that sets a key.
PREFIX = "QMTL_"

# Classes that read the configuration: the SDK's, and the services' where they are installed.
CLASSES = Registry("qmtl.settings", "settings class", {"sdk": "qmtl_sdk.runtime.config:Settings"})


def _is_address(url: str) -> bool:
    try:
        address = urlsplit(url)
        port = address.port  # raises ValueError where it is no port
    except ValueError:
        return False
    good = address.scheme in ("http", "https") and bool(address.hostname) and port != 0
    return good and bool(_ADDRESS_CHARACTERS.fullmatch(url))


class Section(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewaySettings(Section):
    url: str | None = Field(
        None, description="the Gateway's address for Runner and qmtl; none: the embedded stack"
    )
    token: str | None = Field(
        None,
        description="the bearer token of Runner and qmtl; none: the embedded stack's",
    )

    @field_validator("url")
    @classmethod
    def _require_address(cls, url: str | None) -> str | None:
        if url and not _is_address(url):
            shown = _PASSWORD.sub(r"\1***@", url)
            raise ValueError(f"{shown!r} is no address: write http://HOST:PORT or https://HOST")
        return url


class CacheSettings(Section):
    dir: Path | None = Field(None, description="computed outputs; none: a folder in home")


class LimitsInTests(Section):
    test_mode: bool = Field(
        False, description="short time limits for Runner and qmtl, so that a test fails instead of hanging"
    )


class Settings(BaseSettings):
    """The keys of Runner and the clients. `settings()` builds it and reports a fault as one QmtlError."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    profile: Literal["dev", "prod"] = Field(
        "dev", description="dev: one host; prod: hosts that share every store, which refuses to start today"
    )
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("qmtl")),
        description="data folder: bus, queues, artifacts, keys, tokens; "
        "in the embedded stack also the databases",
    )
    gateway: GatewaySettings = GatewaySettings()
    cache: CacheSettings = CacheSettings()
    test: LimitsInTests = LimitsInTests()

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
    def cache_dir(self) -> Path:
        return self.cache.dir or self.home / "cache"

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


S = TypeVar("S", bound=Settings)


def config_file() -> Path | None:
    """Return the configuration file in force, or None."""
    named = os.environ.get(ENV)
    path = Path(named) if named else Path(FILE)
    if named and not path.exists():
        raise QmtlError(
            "E_CONFIG", f"{ENV} names {named}, which does not exist", "mend the variable, or write the file"
        )
    return path if path.exists() else None


def read(kind: type[S]) -> S:
    """Read the configuration with a class. Raises QmtlError: E_CONFIG where a key or value is invalid."""
    _require_known_variables(kind)
    try:
        return kind()
    except ValidationError as error:
        raise _fault(kind, error) from error
    except yaml.YAMLError as error:
        raise QmtlError(
            "E_CONFIG",
            f"{config_file()} is not YAML: {' '.join(str(error).split())}",
            "mend the text at that place",
        ) from error


def _require_known_variables(kind: type[S]) -> None:
    """Refuse variables that would set nothing: of an unknown section, or a known key with one underscore.

    Pydantic ignores both in silence. Any other variable without `__` belongs to another program. So does
    QMTL_GATEWAY_PORT where it holds an address: Kubernetes sets it for a service called qmtl-gateway. Raises
    QmtlError (E_CONFIG).
    """
    sections = list(kind.model_fields)
    for variable in sorted(name for name in os.environ if name.startswith(PREFIX)):
        section, nested, _ = variable.removeprefix(PREFIX).partition("__")
        set_by_kubernetes = variable.endswith("_PORT") and "://" in os.environ[variable]
        meant = "" if nested or set_by_kubernetes else _with_two_underscores(kind, variable)
        if meant:
            raise QmtlError(
                "E_CONFIG", f"{variable} sets nothing", f"write {meant}, with two underscores, or unset it"
            )
        if nested and section.lower() not in sections:
            raise QmtlError(
                "E_CONFIG",
                f"{variable}: {section.lower()} is not a known section{nearest(section.lower(), sections)}",
                "unset the variable or mend its name; qmtl config show lists every key",
            )


def _with_two_underscores(kind: type[S], variable: str) -> str:
    """Return the variable that this one is with a missing underscore; empty where it is none."""
    for section, field in kind.model_fields.items():
        keys = getattr(field.annotation, "model_fields", {})
        for key in keys:
            if variable == f"{PREFIX}{section}_{key}".upper():
                return f"{PREFIX}{section}__{key}".upper()
    return ""


def load() -> Settings:
    """Read the configuration with the class that knows every key.

    Raises QmtlError: E_CONFIG where a key or value is invalid.
    """
    kind: type[Settings] = CLASSES.load("services" if "services" in CLASSES.names() else "sdk")
    return read(kind)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """Return the configuration of this process, read once."""
    return load()


def explain(current: Settings) -> list[tuple[str, str, str, str]]:
    """List every key with its value, the value's origin and its meaning. Secrets are masked."""
    path = config_file()
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
        rows.append((name, _shown(parts, value), origin, _meaning(type(current), parts)))
    return rows


def _meaning(kind: type[BaseModel], parts: list[str]) -> str:
    """Return the description of a key; for a key of a mapping, such as options, that of the mapping."""
    field = kind.model_fields[parts[0]]
    inner = field.annotation
    if len(parts) > 1 and isinstance(inner, type) and issubclass(inner, BaseModel):
        return _meaning(inner, parts[1:])
    return field.description or ""


def _shown(parts: list[str], value: Any) -> str:
    """Return a value as text; of a secret, only that it is set. (Any: every key has a type of its own.)"""
    if not value:
        return "" if value is None else str(value)
    # What an extension's options mean is not known here, so each may be a secret.
    if parts[-1] in ("api_key", "token") or any(part.endswith("_options") for part in parts[:-1]):
        return "***"
    return _PASSWORD.sub(r"\1***@", str(value))


def _leaves(body: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, value in body.items():
        inner = isinstance(value, dict) and value  # options are a key even while they are empty
        rows += _leaves(value, f"{prefix}{name}.") if inner else [(prefix + name, value)]
    return rows


def _fault(kind: type[Settings], error: ValidationError) -> QmtlError:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        leaves = _leaves(kind.model_construct().model_dump(mode="json"))
        known = [name for name, _ in leaves] + list(kind.model_fields)
        return QmtlError(
            "E_CONFIG",
            f"{where} is not a known key{nearest(where, known)}",
            "qmtl config show lists them all",
        )
    return QmtlError("E_CONFIG", f"{where}: {first['msg']}", "mend it in qmtl.yml or in its QMTL_… variable")
