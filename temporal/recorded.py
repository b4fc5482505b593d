"""The error of a request that was stored before Temporal was asked, where Temporal is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qmtl_sdk.contracts.errors import QmtlError


@asynccontextmanager
async def recorded(message: str, remedy: str, limit_s: float | None = None) -> AsyncIterator[None]:
    """Say that the request is recorded where the block cannot reach Temporal, or takes `limit_s` seconds.

    Raises QmtlError: E_RECORDED in the place of E_UNAVAILABLE.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError as error:
        raise QmtlError("E_RECORDED", message, remedy) from error
    except QmtlError as error:
        if error.code != "E_UNAVAILABLE":
            raise
        raise QmtlError("E_RECORDED", message, remedy) from error
