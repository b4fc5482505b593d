"""The table of routes and the role that each requires; docs and tests read it.

No route may be missing. Where its path has a `world_id`, the role is required in that world; otherwise in
some world, and the route checks which (`Caller.require_role`).
"""

from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer

from api.auth.limits import MAX_PARAMETERS, MAX_PATH, MAX_QUERY, RateLimit
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


@dataclass(frozen=True)
class Access:
    """What a route requires. `role` None: no token. `world`: where the request names the role's world.

    `urgent`: it has a rate limit of its own, which no other requests of the caller use up. `costly`: it takes
    much processor time, and has a rate limit far below the others' as well.
    """

    role: Role | None
    world: str = "any"
    urgent: bool = False
    costly: bool = False


_R = Role.READER
_A = Role.AUTHOR
_OP = Role.OPERATOR
_OWN = Role.OWNER
ROUTES: dict[tuple[str, str], Access] = {
    ("POST", "/strategies"): Access(_A, "body"),
    ("POST", "/strategies/dry-run"): Access(_A, "body"),
    ("GET", "/strategies/{strategy_id}/status"): Access(_R, "run"),
    ("POST", "/leases/{lease_id}/heartbeat"): Access(_A, "run"),
    ("POST", "/leases/{lease_id}/complete"): Access(_A, "run"),
    ("POST", "/leases/{lease_id}/fail"): Access(_A, "run"),
    ("PUT", "/artifacts/{content_hash}"): Access(_A),
    ("GET", "/artifacts/{content_hash}"): Access(_R),
    ("POST", "/worlds"): Access(_OP, "body"),
    ("GET", "/worlds"): Access(_R),
    ("GET", "/worlds/{world_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/policies"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/policies"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/policies/{version}"): Access(_R, "path"),
    ("PATCH", "/worlds/{world_id}"): Access(_OP, "path"),
    ("DELETE", "/worlds/{world_id}"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/evaluate"): Access(_R, "path", costly=True),
    ("POST", "/worlds/{world_id}/policies/{version}/set-default"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/policies/{version}/diff"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/policies/replay"): Access(_R, "path", costly=True),
    ("GET", "/worlds/{world_id}/explain/{strategy_id}"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/bindings"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/nodes"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/fingerprints"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/apply"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/apply/plan"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/applies"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/applies/{run_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/approve"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/reject"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/applies/{run_id}/abort"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/changes"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/changes/{change_id}/approve"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/changes/{change_id}/reject"): Access(_A, "path"),
    ("POST", "/worlds/{world_id}/promotions"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/promotions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/promotions/{strategy_id}"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/promotions/{strategy_id}/end"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/fence"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/halt"): Access(_OP, "path", urgent=True),
    ("POST", "/halt"): Access(_OP, urgent=True),
    ("POST", "/worlds/{world_id}/orders/cancel"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/resume"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/edges/overrides"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/edges/overrides"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/audit"): Access(_R, "path"),
    ("GET", "/audit"): Access(_OWN),
    ("POST", "/fills"): Access(_OP, "body"),
    ("GET", "/allocations"): Access(_R),
    ("POST", "/allocations"): Access(_OP, "body"),
    ("POST", "/rebalancing/plan"): Access(_R, "body", costly=True),
    ("GET", "/worlds/{world_id}/positions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/ledger"): Access(_R, "path"),
    ("POST", "/worlds/{world_id}/ledger"): Access(_OP, "path"),
    ("POST", "/worlds/{world_id}/ledger/verify"): Access(_R, "path", costly=True),
    ("POST", "/worlds/{world_id}/ledger/rebuild"): Access(_OP, "path", costly=True),
    ("POST", "/orders"): Access(_A, "body"),
    ("POST", "/orders/withheld"): Access(_A, "body"),
    ("GET", "/orders"): Access(_R, "query"),
    ("POST", "/sessions/{session_id}/ack"): Access(_A, "session"),
    ("POST", "/worlds/{world_id}/decide"): Access(_OP, "path"),
    ("GET", "/worlds/{world_id}/decisions"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/activation"): Access(_R, "path"),
    ("GET", "/worlds/{world_id}/activation/state_hash"): Access(_R, "path"),
    ("POST", "/sessions"): Access(_A, "body"),
    ("GET", "/sessions"): Access(_R),
    ("POST", "/sessions/{session_id}/heartbeat"): Access(_A, "session"),
    ("DELETE", "/sessions/{session_id}"): Access(_A, "session"),
    ("GET", "/queues/by_tag"): Access(_R, "query"),
    ("GET", "/queues/{topic}/messages"): Access(_A, "queue"),
    ("POST", "/queues/{topic}/messages"): Access(_A, "queue"),
    ("POST", "/events/subscribe"): Access(_R, "body"),
    ("GET", "/events/poll"): Access(None, "stream token"),
    ("GET", "/events/dead-letters"): Access(_OP),
    ("POST", "/events/dead-letters/{number}/retry"): Access(_OP),
    ("DELETE", "/events/dead-letters/{number}"): Access(_OP),
    ("GET", "/events/schema"): Access(None),
    ("GET", "/events/jwks"): Access(None),
    ("POST", "/principals"): Access(_OWN),
    ("GET", "/principals"): Access(_OP),
    ("POST", "/principals/{name}/disable"): Access(_OWN),
    ("POST", "/tokens"): Access(_OP),
    ("GET", "/tokens"): Access(_OP),
    ("DELETE", "/tokens/{token_id}"): Access(_OP),
    ("POST", "/tokens/rotate"): Access(_OWN),
    ("GET", "/status"): Access(_R),
    ("GET", "/health"): Access(None),
    ("GET", "/metrics"): Access(None),
}


class Caller(access.Caller):
    """The caller of a request. `live`: whether the request confirms that it may lead to live trading."""

    live: bool = False

    def require_role(self, world_id: str, role: Role) -> None:
        """Require a role in a world.

        Raises QmtlError: E_WORLD_FORBIDDEN where the caller has no role there, E_ROLE where it is too low.
        """
        mine = self.role_in(world_id)
        if mine is None:
            raise QmtlError(
                "E_WORLD_FORBIDDEN",
                f"{self.subject} has no role in world {world_id[:64]}",
                f"an owner creates a token for it: qmtl token create NAME --world {world_id[:64]}",
            )
        if not mine.covers(role):
            raise QmtlError(
                "E_ROLE",
                f"this needs the role {role.value} in world {world_id[:64]}; "
                f"{self.subject} has {mine.value} there",
                "ask someone with that role, or for a token with it",
            )

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
