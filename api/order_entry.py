"""The fast path of `POST /orders`: from the bytes of a request to the fence without FastAPI's layers.

One order a request is what running strategies send most, and FastAPI took several times as long as the fence
for it.

1. The request names a token whose signature was verified before, and declares a JSON body within the limit.
2. The request counts for the caller's rate, and its body is read and parsed.
3. The caller may send orders to each of their worlds.
4. The fence decides, and the verdicts are the response. It also reads whether the token has been revoked, in
   the transaction of the orders, so that this needs no look of its own.

Step 2 refuses a caller who sends too much, and step 4 gives the fence's errors: both are the calls of the
route. A request that fails another check goes on to the route, with its body, and gets the route's answer. So
whatever is wrong with a request is found and said in one place.
"""

from pydantic import ValidationError
from starlette.datastructures import State
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from activities.fence.callers import OrderCaller
from api.problems import failed, problem
from api.routes.orders import send_orders
from api.state import GatewayState
from qmtl_sdk.contracts.access import Caller, Role
from qmtl_sdk.contracts.errors import QmtlError
from qmtl_sdk.contracts.orders import OrderBatch
from qmtl_sdk.contracts.sessions import MAX_SECRET, SESSION_HEADER

_Headers = dict[bytes, bytes]

# The header with the secret of the session, as ASGI names it.
_SECRET = SESSION_HEADER.lower().encode()


class OrderEntry:
    """Answers good orders in front of the application.

    It also answers the refusals of the two calls that it shares with the route: the rate limit and the
    fence's errors. Everything else goes on to the application.
    """

    def __init__(self, app: ASGIApp, state: State, limit: int) -> None:
        """Take the application's state (`limit`, and `gateway` once it runs), and a body's limit in bytes."""
        self._app = app
        self._state = state
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] != "/orders" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        state: GatewayState = self._state.gateway
        headers = dict(scope["headers"])
        caller = self._caller(state, headers)
        secret = headers.get(_SECRET, b"").decode("latin-1")
        doubled = len(headers) < len(scope["headers"])
        if caller is None or doubled or len(secret) > MAX_SECRET or not self._declares_json(headers):
            return await self._app(scope, receive, send)
        try:
            self._state.limit.take(caller.subject)
            messages, body = await _read(receive)
            answer = await _decide(state, caller, secret, body)
        except QmtlError as error:
            return await problem(error)(scope, receive, send)
        except Exception as error:  # nothing behind this would answer
            return await failed(scope["path"], error)(scope, receive, send)
        if answer is None:
            self._state.limit.give_back(caller.subject)  # the route takes it again
            return await self._app(scope, _again(messages, receive), send)
        size = str(len(answer)).encode()
        start = [(b"content-length", size), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": answer})

    @staticmethod
    def _caller(state: GatewayState, headers: _Headers) -> Caller | None:
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        return state.tokens.known_caller(token.decode("latin-1")) if scheme == b"Bearer" else None

    def _declares_json(self, headers: _Headers) -> bool:
        length = headers.get(b"content-length", b"")
        return (
            headers.get(b"content-type") == b"application/json"
            and length.isdigit()
            and int(length) <= self._limit
        )


async def _read(receive: Receive) -> tuple[list[Message], bytes]:
    """Read the body; return it also as the messages it came in."""
    messages = [await receive()]
    while messages[-1].get("more_body", False):
        messages.append(await receive())
    return messages, b"".join(message.get("body", b"") for message in messages)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Return a `receive` that gives these messages first."""
    waiting = iter(messages)

    async def receive_again() -> Message:
        return next(waiting, None) or await receive()

    return receive_again


async def _decide(state: GatewayState, caller: Caller, secret: str, body: bytes) -> bytes | None:
    """Return the verdicts as JSON; None where the route has to answer. Raises QmtlError."""
    batch = _parse(body, caller)
    if batch is None:
        return None
    try:
        sender = OrderCaller(caller.subject, {batch.orders[0].session_id: secret}, caller.token_id)
        verdicts = await send_orders(state, batch, sender)
    except QmtlError as error:
        if error.code == "E_TOKEN_REVOKED":
            return None
        raise
    return verdicts.model_dump_json().encode()


def _parse(body: bytes, caller: Caller) -> OrderBatch | None:
    """Return the batch; None where the body is no batch or the caller may not send it."""
    try:
        batch = OrderBatch.model_validate_json(body)
    except ValidationError:
        return None
    worlds = {order.world_id for order in batch.orders}
    return batch if all(caller.may(Role.AUTHOR, world_id) for world_id in worlds) else None
