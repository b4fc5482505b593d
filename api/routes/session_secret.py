"""The secret of a session, from the header of a request."""

from typing import Annotated

from fastapi import Header

from qmtl_sdk.contracts.sessions import MAX_SECRET, SESSION_HEADER

SessionSecret = Annotated[
    str, Header(alias=SESSION_HEADER, max_length=MAX_SECRET, description="the secret of the session's grant")
]
