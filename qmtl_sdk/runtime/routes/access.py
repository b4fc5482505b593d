"""Principals, tokens and the state of the Gateway."""

from typing import Any
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter

from qmtl_sdk.contracts.access import NewToken, Principal, PrincipalRequest, TokenInfo, TokenRequest
from qmtl_sdk.contracts.events import DeadLetter
from qmtl_sdk.runtime.routes.transport import Transport


class AccessRoutes(Transport):
    """Principals, tokens, dead letters and the state of the Gateway."""

    def add_principal(self, name: str) -> Principal:
        return Principal.model_validate(self._call("POST", "/principals", PrincipalRequest(name=name)))

    def principals(self) -> list[Principal]:
        return TypeAdapter(list[Principal]).validate_python(self._call("GET", "/principals"))

    def disable_principal(self, name: str) -> Principal:
        return Principal.model_validate(self._call("POST", f"/principals/{quote(name, safe='')}/disable"))

    def create_token(self, request: TokenRequest) -> NewToken:
        return NewToken.model_validate(self._call("POST", "/tokens", request))

    def tokens(self, after: str | None = None, limit: int = 100) -> list[TokenInfo]:
        """List a page of tokens, newest first; `after` is the last token of the page before."""
        wanted = {"limit": limit, **({"after": after} if after else {})}
        return TypeAdapter(list[TokenInfo]).validate_python(self._call("GET", "/tokens", params=wanted))

    def revoke_token(self, token_id: str) -> TokenInfo:
        return TokenInfo.model_validate(self._call("DELETE", f"/tokens/{token_id}"))

    def dead_letters(self, after: int, limit: int) -> list[DeadLetter]:
        found = self._call("GET", "/events/dead-letters", params={"after": after, "limit": limit})
        return TypeAdapter(list[DeadLetter]).validate_python(found)

    def retry_dead_letter(self, number: int) -> DeadLetter:
        return DeadLetter.model_validate(self._call("POST", f"/events/dead-letters/{number}/retry"))

    def drop_dead_letter(self, number: int) -> DeadLetter:
        return DeadLetter.model_validate(self._call("DELETE", f"/events/dead-letters/{number}"))

    def rotate_keys(self, overlap_s: int) -> dict[str, Any]:
        found: dict[str, Any] = self._call("POST", "/tokens/rotate", params={"overlap_s": overlap_s})
        return found

    def health(self) -> dict[str, Any]:
        """Return the health document, also when the Gateway reports that it is degraded."""
        try:
            found: dict[str, Any] = self._http.get("/health").json()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        return found

    def gateway_status(self) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", "/status")
        return found
