"""Who may do what: each request's caller, their rate limit, and the role that its route requires."""

from collections.abc import Callable, Collection, Coroutine, Iterable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.auth.limits import MAX_PARAMETERS, MAX_PATH, MAX_QUERY, RateLimit
from api.auth.route_roles import ROUTES
from api.auth.tokens import Tokens
from qmtl_sdk.contracts import access
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.canonical import read_json
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.texts import printable

LIVE_HEADER = "X-Allow-Live"
"""Header that a request which leads to live trading must set to `true`."""

BEARER = HTTPBearer(
    auto_error=False, scheme_name="token", description="a token that `qmtl token create NAME` printed"
)
"""How requests carry a token, for the OpenAPI document; `authorise` reads and checks it."""


class Caller(access.Caller):
    """The caller of a request. `live`: whether the request confirms that it may lead to live trading."""

    live: bool = False

    def require_approver(self, world_id: str, roles: Collection[str]) -> None:
        """Require one of the roles that a policy lets approve; an owner may approve for an operator.

        Raises QmtlError (E_APPROVAL_ROLE).
        """
        mine = self.role_in(world_id)
        if mine is None or (mine.value not in roles and not (mine is Role.OWNER and "operator" in roles)):
            raise QmtlError(
                "E_APPROVAL_ROLE",
                f"{self.subject} has the role {mine.value if mine else 'none'} in {world_id}; "
                f"its policy lets {' or '.join(roles)} approve",
                "ask someone with that role",
            )

    def require_live(self, world_id: str) -> None:
        """Require what leads to live trading: an operator in the world, and the live header.

        Raises QmtlError: E_WORLD_FORBIDDEN, E_ROLE, E_LIVE_HEADER.
        """
        self.require_role(world_id, Role.OPERATOR)
        if not self.live:
            raise QmtlError(
                "E_LIVE_HEADER",
                "this leads to live trading, which the request does not confirm",
                f"add --live; by HTTP, send the header {LIVE_HEADER}: true",
            )


class _JsonRequest(Request):
    """A request whose body is read as JSON from outside: its depth is limited."""

    async def json(self) -> Any:
        """Return the body. (Any: a contract checks it.) Raises json.JSONDecodeError, answered E_BODY_JSON."""
        return read_json(await self.body())


class GuardedRoute(APIRoute):
    """A route that authorises the caller before it reads anything else of the request."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler with the check in front. (Any: FastAPI's signature.)"""
        inner = super().get_route_handler()

        async def handler(request: Request) -> Response:
            require_short(request)
            await authorise(request)
            return await inner(_JsonRequest(request.scope, request.receive))

        return handler


def check_table(routers: Iterable[APIRouter]) -> None:
    """Raise RuntimeError unless every route has an entry and a guard, and every entry has a route."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    present = {(method, route.path) for route in routes for method in route.methods or ()}
    unguarded = [route.path for route in routes if not isinstance(route, GuardedRoute)]
    if present != set(ROUTES) or unguarded:
        raise RuntimeError(
            f"routes without a role: {sorted(present - set(ROUTES))}; "
            f"roles without a route: {sorted(set(ROUTES) - present)}; routes without a guard: {unguarded}"
        )


def require_short(request: Request) -> None:
    """Check the parameters in a request's address, before anything reads them.

    Raises QmtlError: E_BODY_INVALID where one is too long or is not printable, or where there are too many.
    """
    given = request.query_params.multi_items() if request.url.query else []
    for limit, parameters in ((MAX_PATH, request.path_params.items()), (MAX_QUERY, given)):
        for name, value in parameters:
            if len(value) > limit or len(name) > limit:
                raise _bad_parameter(name, f"has {len(value)} characters; {limit} are allowed")
            if not (value.isprintable() and name.isprintable()):
                raise _bad_parameter(name, "contains a sign that is not printable")
    if len(given) > MAX_PARAMETERS:
        raise _bad_parameter(given[0][0], f"is one of {len(given)} parameters; {MAX_PARAMETERS} are allowed")


def _bad_parameter(name: str, what: str) -> QmtlError:
    return QmtlError(
        "E_BODY_INVALID", f"{printable(name, 64)} {what}", "see /openapi.json for the parameters"
    )


async def authorise(request: Request) -> None:
    """Identify the caller, apply the rate limit, and check the role. Raises QmtlError."""
    tokens: Tokens = request.app.state.tokens
    limit: RateLimit = request.app.state.limit
    entry = ROUTES[(request.method, request.scope["route"].path)]
    request.state.caller = None
    if entry.role is None:
        limit.take(request.client.host if request.client else "")
        return
    try:
        found = await tokens.caller(bearer(request))
    except QmtlError:
        limit.take(request.client.host if request.client else "")
        raise
    limit.take(f"{found.subject}\0urgent" if entry.urgent else found.subject)
    caller = Caller(**found.model_dump(), live=request.headers.get(LIVE_HEADER, "").lower() == "true")
    request.state.caller = caller
    if entry.world == "path":
        caller.require_role(request.path_params["world_id"], entry.role)
    elif caller.highest is None or not caller.highest.covers(entry.role):
        highest = caller.highest.value if caller.highest else "none"
        raise QmtlError(
            "E_ROLE",
            f"this needs the role {entry.role.value}; {caller.subject} has {highest}",
            "ask someone with that role, or for a token with it",
        )
    if entry.costly:  # what is refused above costs nothing
        request.app.state.costly_limit.take(found.subject)


def bearer(request: Request) -> str:
    """Return the token of a request. Raises QmtlError: E_TOKEN_MISSING."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise QmtlError(
            "E_TOKEN_MISSING",
            "the request carries no bearer token",
            "send Authorization: Bearer TOKEN; qmtl and Runner find the local token themselves",
        )
    return token.strip()


async def _caller(request: Request) -> Caller:
    # Async for the reason given at `api.state._state`.
    caller: Caller = request.state.caller
    return caller


CurrentCaller = Annotated[Caller, Depends(_caller)]
