"""Events: subscribe, stream, or poll."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, WebSocket
from starlette.routing import WebSocketRoute

from api.auth.access import CurrentCaller, GuardedRoute, bearer
from api.state import State
from api.stream import StreamAuthorization, Subscriber
from qmtl_sdk.contracts.access import Role
from qmtl_sdk.contracts.errors import QmtlError, nearest
from qmtl_sdk.contracts.events import KINDS, NO_WORLD
from qmtl_sdk.contracts.stream import Polled, Subscribe, Subscription, schemas

router = APIRouter(prefix="/events", tags=["events"], route_class=GuardedRoute)
STREAM_PATH = "/events/stream"


@router.post("/subscribe", summary="Subscribe: get the address and the token of a stream")
async def subscribe(wanted: Subscribe, request: Request, state: State, caller: CurrentCaller) -> Subscription:
    """`topics` are kinds of events. World `_` holds events of no world and takes an operator."""
    for topic in wanted.topics:
        if topic not in KINDS:
            raise QmtlError(
                "E_TOPIC_UNKNOWN",
                f"{topic[:64]!r} is not a topic{nearest(topic, list(KINDS))}",
                f"topics are: {', '.join(KINDS)}",
            )
    caller.require_role(wanted.world_id, Role.OPERATOR if wanted.world_id == NO_WORLD else Role.READER)
    if wanted.world_id != NO_WORLD:
        await asyncio.to_thread(state.stores.worlds.world, wanted.world_id)
    lifetime = state.config.events.token_s
    token = state.tokens.issue_stream(caller, wanted, lifetime)
    base = str(request.base_url).rstrip("/")
    return Subscription(
        stream_url="ws" + base.removeprefix("http") + STREAM_PATH,
        poll_url=f"{base}/events/poll",
        token=token,
        topics=wanted.topics,
        expires_at=datetime.now(UTC) + timedelta(seconds=lifetime),
        expires_in=lifetime,
    )


@router.get("/poll", summary="Poll the events of a stream's topics after a position")
async def poll(
    request: Request,
    state: State,
    after: Annotated[
        list[str],
        Query(
            max_length=20,
            description="TOPIC:SEQUENCE for each topic that was read before; the others get a snapshot",
        ),
    ] = [],  # noqa: B006  FastAPI copies it
    log: Annotated[str, Query(max_length=64, description="the log that the positions refer to")] = "",
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for a new event")] = 0.0,
) -> Polled:
    """The sequences are those of the stream. Takes the token of `POST /events/subscribe`."""
    claims = await state.tokens.stream(bearer(request))
    positions: dict[str, int] = {}
    for item in after:
        topic, _, sequence = item.partition(":")
        if topic not in claims.topics:
            raise QmtlError(
                "E_TOPIC_FORBIDDEN",
                f"the token is not for {topic[:64]!r}",
                f"it is for: {', '.join(claims.topics)}",
            )
        if not sequence.isascii() or not sequence.isdigit() or len(sequence) > 18:
            raise QmtlError(
                "E_BODY_INVALID", f"after: {item[:80]!r} is not TOPIC:SEQUENCE", "write it like activation:12"
            )
        positions[topic] = int(sequence)
    return await state.hub.poll(claims, log, positions, wait)


@router.get("/schema", summary="Get the JSON schemas of events and frames")
def schema() -> dict[str, Any]:
    return schemas()


@router.get("/jwks", summary="Get the public keys of tokens")
def jwks(state: State) -> dict[str, Any]:
    return state.tokens.jwks()


async def stream(socket: WebSocket) -> None:
    """Serve a stream. Its token is in the first frame: browsers send no headers, and addresses are logged."""
    state = socket.app.state.gateway
    authorization = StreamAuthorization(state.tokens, state.revoked)
    await Subscriber(socket, state.hub, authorization, state.sockets, state.config.events).run()


# Starlette's route: FastAPI's adds objects to each of thousands of sockets that nothing here uses.
stream_route = WebSocketRoute(STREAM_PATH, stream)
