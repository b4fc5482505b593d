"""Clients of the Gateway for commands: with the configured token, or with the token of another person."""

from collections.abc import Iterator
from contextlib import contextmanager

from activities.settings import settings
from api.stack import EmbeddedStack
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.runtime import embedded
from qmtl_sdk.runtime.client import GatewayClient


@contextmanager
def gateway(start: bool = False) -> Iterator[GatewayClient]:
    """Connect to the configured or running Gateway.

    With `start`, the embedded stack is started where no Gateway runs. Raises QmtlError: E_UNAVAILABLE where
    none runs, and whatever starting the stack raises.
    """
    config = settings()
    url = embedded.find(config)
    if url is None and start:
        url = EmbeddedStack(config).up().gateway_url
    if url is None:
        raise QmtlError(
            "E_UNAVAILABLE",
            "no Gateway runs",
            "start the embedded stack with `qmtl up`, or set gateway.url",
        )
    with GatewayClient(url, config.token) as client:
        yield client


@contextmanager
def gateway_as(name: str | None) -> Iterator[GatewayClient]:
    """Connect with the token in HOME/tokens/`name`; None: with the configured token.

    Raises QmtlError: E_UNAVAILABLE, and E_TOKEN_MISSING where there is no such token.
    """
    with gateway() as client:
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
        with GatewayClient(client.url, token) as other:
            yield other
