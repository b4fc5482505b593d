"""Clients of the Gateway for commands: with the configured token, or with the token of another person."""

from collections.abc import Iterator
from contextlib import contextmanager

from activities.settings import Settings, settings
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient


@contextmanager
def gateway(start: bool = False, within_s: float | None = None) -> Iterator[GatewayClient]:
    """Connect to the configured or running Gateway, whatever else of the stack is dead.

    With `start`, the embedded stack is started where a part of it is dead. With `within_s`, a Gateway
    that takes longer to answer counts as unreachable.

    Raises QmtlError: E_UNAVAILABLE where none runs, and whatever starting the stack raises.
    """
    config = settings()
    url = embedded.find(config) if start else embedded.recorded_gateway(config)
    if url is None and start:
        url = EmbeddedStack(config).up().gateway_url
    if url is None:
        raise QmtlError(
            "E_UNAVAILABLE",
            "no Gateway runs",
            "start the embedded stack with `qmtl up`, or set gateway.url",
        )
    with _client(url, config, within_s) as client:
        yield client


@contextmanager
def gateway_as(name: str | None, within_s: float | None = None) -> Iterator[GatewayClient]:
    """Connect with the token in QMTL_HOME/tokens/`name`; None: with the configured token.

    Raises QmtlError: E_UNAVAILABLE, and E_TOKEN_MISSING where there is no such token.
    """
    with gateway(within_s=within_s) as client:
        if name is None:
            yield client
            return
        path = settings().local_token_path(name)
        try:
            token = path.read_text().strip()
        except OSError as error:
            names = sorted(item.name for item in path.parent.iterdir()) if path.parent.is_dir() else []
            raise QmtlError(
                "E_TOKEN_MISSING",
                f"there is no token {name} in {path.parent}",
                f"tokens there: {', '.join(names) or 'none'}",
            ) from error
        own = settings()
        named = own.model_copy(update={"gateway": own.gateway.model_copy(update={"token": token})})
        with _client(client.url, named, within_s) as other:
            yield other


def _client(url: str, config: Settings, within_s: float | None) -> GatewayClient:
    if within_s is None:
        return GatewayClient.configured(url, config)
    return GatewayClient(url, config.token, away_limit_s=0.0, answer_limit_s=within_s)


@contextmanager
def gateway_as_owner() -> Iterator[GatewayClient]:
    """Connect with the owner's token where this person can read it, otherwise with the configured one.

    The Gateway writes it next to the operator's token. Raises QmtlError: E_CONFIG where it cannot be read.
    """
    config = settings()
    with gateway() as client:
        path = config.local_token_path(Role.OWNER.value)
        if config.gateway.token or not path.exists():
            yield client
            return
        try:
            token = path.read_text().strip()
        except OSError as error:
            raise QmtlError(
                "E_CONFIG",
                f"the owner's token can't be read: {error.strerror}",
                "it belongs to the person who started the stack",
            ) from error
        with GatewayClient(client.url, token) as owner:
            yield owner
